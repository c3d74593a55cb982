"""The forward pass, against transformers.

`python tests/test_model.py` recomputes golden.json with transformers.
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, SHIPPED, random_llama, randomise, some_tokens, tiny_config

from model import Config, Llama
from sample import SamplingParams, generate

GOLDEN = Path(__file__).parent / "golden.json"
each_shape = pytest.mark.parametrize("shape", SHAPES)


@torch.no_grad()
def logits_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """Of ours, or of transformers, which wraps them."""
    output = model(tokens)
    return output if isinstance(output, torch.Tensor) else output.logits


def assert_same_logits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.5  # else closeness would say nothing
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def peer(hf_config: dict):
    """A random model of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**hf_config)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    return model


# --------------------------------------------------------------------------------------------
# Logits


@each_shape
def test_logits_equal_transformers(shape, tmp_path):
    theirs, tokens = peer(SHAPES[shape]), some_tokens(2, 96)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(logits_of(Llama.from_pretrained(tmp_path), tokens),
                       logits_of(theirs, tokens))


def in_older_spelling(hf_config: dict, shape: str) -> dict:
    """A config.json that transformers 5 wrote, as transformers 4 would have."""
    assert "rope_parameters" in hf_config and "rope_theta" not in hf_config
    older = {**hf_config, "torch_dtype": hf_config["dtype"]}
    del older["rope_parameters"], older["dtype"]
    for name in ("rope_theta", "rope_scaling"):
        older[name] = SHAPES[shape].get(name)
    return older


@each_shape
def test_config_in_its_older_spelling_gives_the_same_logits(shape, tmp_path):
    theirs, tokens = peer(SHAPES[shape]), some_tokens(2, 96)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(in_older_spelling(json.loads(path.read_text()), shape)))
    assert_same_logits(logits_of(Llama.from_pretrained(tmp_path), tokens),
                       logits_of(theirs, tokens))


def test_rope_scaling_changes_the_logits():
    scaled = random_llama(SHAPES["llama3.2"])
    plain = random_llama({**SHAPES["llama3.2"], "rope_scaling": None})
    tokens = some_tokens(2, 96)
    assert (logits_of(scaled, tokens) - logits_of(plain, tokens)).abs().max() > 0.1


def test_shipped_model_equals_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    tokens = some_tokens(2, 96, theirs.config.vocab_size)
    assert_same_logits(logits_of(Llama.from_pretrained(SHIPPED), tokens),
                       logits_of(theirs, tokens))


@torch.no_grad()
def golden_llama(hf_config: dict) -> Llama:
    """Weights from a formula, not a random generator: the same on every machine and torch."""
    model = Llama(Config.from_dict(hf_config), hf_config)
    for name, p in model.named_parameters():
        i = torch.arange(p.numel()) + len(name)
        wave = torch.sin((i * i % 7919).double()).float().view_as(p)
        if "norm" in name:
            p.copy_(1 + 0.3 * wave)
        elif p.dim() == 1:
            p.copy_(0.5 * wave)
        else:
            p.copy_(3 * wave / p.shape[1] ** 0.5)
    return model


@each_shape
def test_logits_equal_stored_ones_of_transformers(shape):
    golden = json.loads(GOLDEN.read_text())
    logits = logits_of(golden_llama(SHAPES[shape]), torch.tensor([golden["tokens"]]))
    stored = torch.tensor(golden["logits"][shape])
    assert_same_logits(logits[0, golden["positions"], :8], stored)


@pytest.mark.parametrize("shape", ["smollm2", "llama3.2", "qwen2", "qwen3", "mistral"])
def test_greedy_generation_equals_transformers(shape, tmp_path):
    theirs = peer(SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    ours = Llama.from_pretrained(tmp_path)
    prompts = [some_tokens(1, length)[0].tolist() for length in (3, 14)]
    params = SamplingParams(temperature=0.0, top_p=1.0, max_new_tokens=12)
    generated = generate(ours, prompts, 1, params, seed=[0])
    for prompt, [response] in zip(prompts, generated, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
        assert response.tokens == expected[0, len(prompt) :].tolist()


# --------------------------------------------------------------------------------------------
# Properties


def test_later_tokens_change_no_earlier_logit():
    model, tokens = random_llama(SHAPES["llama3.2"]), some_tokens(2, 20)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 64
    before, after = logits_of(model, tokens), logits_of(model, changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12:] != after[:, 12:]).any(-1).all()


def test_the_forward_pass_does_not_write_to_its_input():
    tokens = some_tokens(2, 20)
    before = tokens.clone()
    logits_of(random_llama(SHAPES["llama3.2"]), tokens)
    assert torch.equal(tokens, before)


def test_tied_embeddings_are_one_tensor():
    """The vocabulary projection is the embedding, and no other weight."""
    model = random_llama(SHAPES["smollm2"])
    assert not hasattr(model, "lm_head") and "lm_head.weight" not in model.state_dict()
    hidden = torch.eye(72)[:5]
    expected = model.model.embed_tokens.weight[:, :5].T
    torch.testing.assert_close(model.compute_logits(hidden), expected)


def test_biases_are_where_the_config_says():
    """Four of attention and three of the MLP in each layer, and each of them changes logits."""
    biased, plain = random_llama(SHAPES["biases"]), random_llama(tiny_config())
    names = {name for name, _ in biased.named_parameters() if name.endswith("bias")}
    assert len(names) == 2 * 7
    assert not any(name.endswith("bias") for name, _ in plain.named_parameters())
    tokens = some_tokens(1, 8)
    before = logits_of(biased, tokens)
    for name in names:
        weights = biased.state_dict()
        kept = weights[name].clone()
        weights[name].zero_()
        assert (logits_of(biased, tokens) - before).abs().max() > 1e-3, name
        weights[name].copy_(kept)
    assert torch.equal(logits_of(biased, tokens), before)


def test_qwen_differs_from_llama_in_these_parameters():
    """A bias on q, k and v of Qwen2, and Qwen3's two norms of each layer; each changes logits."""
    plain = {name for name, _ in random_llama(tiny_config()).named_parameters()}
    for shape, parts in (("qwen2-7b", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
                         ("qwen3", ("q_norm.weight", "k_norm.weight"))):
        model, tokens = random_llama(SHAPES[shape]), some_tokens(1, 8)
        names = {name for name, _ in model.named_parameters()} - plain
        assert names == {f"model.layers.{i}.self_attn.{part}" for i in (0, 1) for part in parts}
        before = logits_of(model, tokens)
        for name in names:
            weights = model.state_dict()
            kept = weights[name].clone()
            weights[name].mul_(torch.linspace(-1, 1, len(kept)))
            assert (logits_of(model, tokens) - before).abs().max() > 1e-3, name
            weights[name].copy_(kept)


if __name__ == "__main__":
    tokens, positions = some_tokens(1, 64)[0].tolist(), [0, 1, 17, 40, 63]
    stored = {}
    for shape, hf_config in SHAPES.items():
        theirs = peer(hf_config)
        tied = hf_config["tie_word_embeddings"]
        theirs.load_state_dict(golden_llama(hf_config).state_dict(), strict=not tied)
        stored[shape] = logits_of(theirs, torch.tensor([tokens]))[0, positions, :8].tolist()
    golden = {"tokens": tokens, "positions": positions, "logits": stored}
    GOLDEN.write_text(json.dumps(golden) + "\n")
