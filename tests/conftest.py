"""What the tests share: tiny random models, scripts run in this process, a small finished run."""

import json
import os
import signal
import string
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

# Results are compared bit for bit here, and several processes run on one machine.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for a busy core are slower

import pytest
import torch
import torch.distributed as dist
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from common.cli import run_script  # noqa: E402
from common.options import parse_args  # noqa: E402
from model import Config, Llama  # noqa: E402

TOY = ROOT / "tasks/toy"
SHIPPED = TOY / "model"

# The benchmarks as their publishers ship them; tests that read them are skipped without.
DATA = Path(os.environ.get("SCPO_DATA", "/no/such/folder"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="SCPO_DATA does not name the folder of benchmark data")

# Real checkpoint folders, likewise.
MODELS = Path(os.environ.get("SCPO_MODELS", "/no/such/folder"))
needs_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason="SCPO_MODELS does not name a folder of checkpoint folders")

# --------------------------------------------------------------------------------------------
# Tiny models

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
WORDS = (
    "Tom Ann has had apples books finds buys gives more left each How many does have now He She "
    "Answer"
).split()


def tiny_config(**overrides) -> dict:
    """A `config.json` as it is read: two layers, 4 query heads on 2 key/value heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **overrides,
    }


def family_config(name: str, **overrides) -> dict:
    """The same of another family: "Qwen2", "Qwen3" or "Mistral"."""
    architecture = {"model_type": name.lower(), "architectures": [f"{name}ForCausalLM"]}
    return tiny_config(**architecture, **overrides)


# The kinds of models that there are, in little.
SHAPES = {
    "smollm2": tiny_config(
        hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        rope_theta=1e5),
    "llama3-8b": tiny_config(num_attention_heads=8, num_key_value_heads=2, rope_theta=5e5),
    "llama3.2": tiny_config(
        head_dim=16, tie_word_embeddings=True, rope_theta=5e5,
        rope_scaling={
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    "llama2": tiny_config(num_key_value_heads=4, rms_norm_eps=1e-6),
    "biases": tiny_config(attention_bias=True, mlp_bias=True),
    "qwen2": family_config(
        "Qwen2", tie_word_embeddings=True, rope_theta=1e6, use_sliding_window=False,
        sliding_window=16, max_window_layers=1),
    "qwen2-7b": family_config("Qwen2", num_attention_heads=8, rope_theta=1e4),
    "qwen3": family_config(
        "Qwen3", head_dim=16, tie_word_embeddings=True, rope_theta=1e6, attention_bias=False),
    "qwen3-biases": family_config("Qwen3", head_dim=16, attention_bias=True, rope_theta=1e6),
    "mistral": family_config("Mistral", head_dim=None, sliding_window=None, rope_theta=1e6),
    "mistral-nemo": family_config("Mistral", head_dim=16, sliding_window=None, rope_theta=1e6),
}


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from their initial values: norms unlike 1, biases unlike 0, logits spread by
    about 2."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            p.copy_(1 + 0.3 * noise)
        elif p.dim() == 1:
            p.copy_(0.5 * noise)
        else:
            p.copy_(2 * noise / p.shape[1] ** 0.5)


def random_llama(hf_config: dict, seed: int = 0) -> Llama:
    model = Llama(Config.from_dict(hf_config), hf_config)
    randomise(model, seed)
    return model.eval()


def some_tokens(rows: int, length: int, vocab_size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(vocab_size, (rows, length), generator=generator)


def toy_tokenizer(*special: str) -> Tokenizer:
    """Known words (with their space) are one token, any other ASCII character is one: decoding
    inverts encoding."""
    words = [f" {word}" for word in WORDS] + [f" {n}" for n in range(100, -1, -1)]
    words += ["Tom", "####", "\n\n"]
    pieces = dict.fromkeys([BOS, EOS, *special, *words, *string.printable[:95], "\n"])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=EOS))
    pattern = Regex("|".join(words) + r"|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([BOS, EOS, *special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder: a random Llama, and a tokenizer that writes any ASCII text exactly."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoint"), toy_tokenizer()
    random_llama(tiny_config(vocab_size=tokenizer.get_vocab_size())).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


# --------------------------------------------------------------------------------------------
# Scripts, run in this process


def run(script: ModuleType, *argv) -> None:
    """Run a script's main as its command line would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, argv)])
        try:
            run_script(script.main)
        finally:
            if dist.is_initialized():  # bf16 makes a process group, and a mistake leaves it
                dist.destroy_process_group()


@pytest.fixture
def error_of(capsys) -> Callable[..., str]:
    """Run a script that a mistake must end with exit code 2 and one line on stderr: that line."""

    def run_and_fail(script: ModuleType, *argv) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(script, *argv)
        lines = capsys.readouterr().err.splitlines()
        assert exit_.value.code == 2
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run_and_fail


def train_args(*argv) -> Namespace:
    """The options of train.py, as a command line gives them."""
    return parse_args(train.options(), [str(arg) for arg in argv])


# --------------------------------------------------------------------------------------------
# Small runs of the toy task

# Two rounds in about two seconds.
SMALL = (
    "--limit 24 --k 4 --tau 0.5 0.75 --new-problems 0 12 --max-new-tokens 48 --epochs 1 "
    "--batch-size 8 --micro-batch-size 4"
).split()
# Files that tell when and how a run was made, besides what it made.
OF_THE_RUN = ("options.json", "stages.json", "results.json", "lock")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a small finished run. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(train, *SMALL, "--out", folder)
    return folder


def digest(path: Path) -> str:
    """Two files with one digest are equal, and pytest takes no hours to show how two differ."""
    return sha256(path.read_bytes()).hexdigest()


def stage_files(folder: Path) -> dict[str, str]:
    """The digest of every file that a run made, its evaluation included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in OF_THE_RUN:
            found[path.relative_to(folder).as_posix()] = digest(path)
    return found


def without_evaluation(files: dict[str, str]) -> dict[str, str]:
    """Of stage_files, those that no label of the test problems may reach."""
    kept = {}
    for name, content in files.items():
        if not Path(name).name.startswith("eval"):
            kept[name] = content
    return kept


def snapshot(folder: Path) -> dict[Path, int]:
    """When each file and folder of a run was last changed."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def delete(path: Path) -> None:
    """Delete a stage's file, or its folder."""
    if path.is_dir():
        for child in path.iterdir():
            delete(child)
        path.rmdir()
    else:
        path.unlink()


@contextmanager
def interrupted_at(step: int) -> Iterator[list[int]]:
    """SIGINT comes during that optimizer step, the first being 1. Yields the steps made so far."""
    steps: list[int] = []
    forward_backward = train.forward_backward

    def count_and_interrupt(*args, **kwargs):
        steps.append(len(steps) + 1)
        if steps[-1] == step:
            signal.raise_signal(signal.SIGINT)
        return forward_backward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "forward_backward", count_and_interrupt)
        yield steps


def run_interrupted(step: int, *argv) -> None:
    """Run train.py until the SIGINT that comes during that optimizer step."""
    with interrupted_at(step), pytest.raises(SystemExit) as exit_:
        run(train, *argv)
    assert exit_.value.code == 130
