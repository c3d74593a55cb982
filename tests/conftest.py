"""What the tests share: tiny random Llamas and a checkpoint folder around one, with a tokenizer."""

import json
import os
import string
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # bit for bit is asked here, and several processes on one machine

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import Config, Llama  # noqa: E402

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
WORDS = "Tom Ann has had apples books finds buys gives more left each How many does have now He She Answer".split()
SHIPPED = ROOT / "tasks" / "toy" / "model"


def tiny_config(**overrides) -> dict:
    """A `config.json` as it is read: two layers, 4 query heads on 2 key/value heads."""
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": False,
            "bos_token_id": 0, "eos_token_id": 1, **overrides}


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values: norms unlike 1, biases unlike 0, and logits spread by about 2."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        noise = torch.randn(p.shape, generator=draw)
        p.copy_(1 + 0.3 * noise if "norm" in name else 0.5 * noise if p.dim() == 1 else 2 * noise / p.shape[1] ** 0.5)


def random_llama(raw: dict, seed: int = 0) -> Llama:
    model = Llama(Config.from_dict(raw), raw)
    randomise(model, seed)
    return model.eval()


def toy_tokenizer(*special: str) -> Tokenizer:
    """Known words (with their space) are one token, any other ASCII character is one: decoding inverts encoding."""
    words = [f" {w}" for w in WORDS] + [f" {n}" for n in range(100, -1, -1)] + ["Tom", "####", "\n\n"]
    pieces = dict.fromkeys([BOS, EOS, *special, *words, *string.printable[:95], "\n"])
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(words) + r"|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([BOS, EOS, *special])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder: a random Llama, and a tokenizer that writes any ASCII text exactly."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoint"), toy_tokenizer()
    random_llama(tiny_config(vocab_size=tokenizer.get_vocab_size())).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast",
                                                              "bos_token": BOS, "eos_token": EOS}))
    return folder
