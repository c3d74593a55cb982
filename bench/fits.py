"""Which settings fit on your GPUs: two tables of bench/README.md, computed from the budget.

    python bench/fits.py      # prints them, and writes them between their marks in bench/README.md

For each model and size of GPU the fewest GPUs that train it and sample from it; and for Llama-3 8B
what each of some GPUs needs. The numbers are those of `train.py --dry-run` on GSM8K; nothing is
measured.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from bench.memory import CUDA_CONTEXT, memory
from bench.report import replace_block
from common.cli import ArgumentParser, run_script
from common.files import write_text
from common.throughput import GIB
from model import Config, Llama

PROMPT, RESPONSE, BATCH_SIZE = 242, 512, 16  # tokens of GSM8K's longest prompt; pairs of a step
SIZES = (16, 24, 48, 80)  # of a GPU, in GB of 10^9 bytes: what cards have at least
COUNTS = (1, 2, 4, 8)
MICRO_BATCHES = (8, 4, 2, 1)
MAX_NUM_SEQS = (512, 256, 128, 64, 32, 16)


def shape(
    model_type: str, vocab_size: int, hidden_size: int, intermediate_size: int, layers: int,
    heads: int, kv_heads: int, head_dim: int, tied: bool,
) -> dict:
    """A `config.json`, as far as memory depends on it."""
    return {
        "model_type": model_type, "vocab_size": vocab_size, "hidden_size": hidden_size,
        "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "tie_word_embeddings": tied}


MODELS = {  # the numbers of their own config.json
    "Qwen2.5-0.5B": shape("qwen2", 151936, 896, 4864, 24, 14, 2, 64, True),
    "Qwen3-0.6B": shape("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
    "Llama-3.2-1B": shape("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "Qwen2.5-1.5B": shape("qwen2", 151936, 1536, 8960, 28, 12, 2, 128, True),
    "Qwen3-1.7B": shape("qwen3", 151936, 2048, 6144, 28, 16, 8, 128, True),
    "Llama-3.2-3B": shape("llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "Qwen3-4B": shape("qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "Llama-3-8B": shape("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
}


def on_meta(hf_config: dict) -> Llama:
    with torch.device("meta"):
        return Llama(Config.from_dict(hf_config), hf_config)


def settings(model: Llama, room: float) -> tuple[int, bool, int, int] | None:
    """The fewest GPUs with so many bytes each, and settings that fit there; None if 8 are too few.

    GPUs, whether activations are computed again, --micro-batch-size, --max-num-seqs. A smaller
    micro-batch is tried before activation checkpointing, which costs a third more time.
    """
    rows = [n for n in MAX_NUM_SEQS if budget(model, 1, 1, n, True)["sampling, at most"] <= room]
    if not rows:
        return None  # each GPU holds a whole model to sample from
    for ranks in COUNTS:
        for again in (False, True):
            for micro_batch in MICRO_BATCHES:
                if micro_batch <= BATCH_SIZE // ranks:
                    need = budget(model, ranks, micro_batch, rows[0], again)
                    if need["training, at most"] <= room:
                        return ranks, again, micro_batch, rows[0]
    return None


def budget(
    model: Llama, ranks: int, micro_batch_size: int, max_num_seqs: int, again: bool
) -> dict[str, float]:
    return memory(
        model, torch.bfloat16, ranks, prompt=PROMPT, response=RESPONSE, batch_size=BATCH_SIZE,
        micro_batch_size=micro_batch_size, max_num_seqs=max_num_seqs,
        prompt_tokens=max_num_seqs * PROMPT, activation_checkpointing=again)


def table() -> str:
    lines = ["| | parameters | " + " | ".join(f"{size} GB" for size in SIZES) + " |",
             "|---|---|" + "---|" * len(SIZES), *map(line, MODELS)]
    return "\n".join(lines)


def line(name: str) -> str:
    model = on_meta(MODELS[name])
    cells = [name, f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f}B"]
    for size in SIZES:
        found = settings(model, size * 1e9 - CUDA_CONTEXT)
        cells.append(show(*found) if found else f"more than {COUNTS[-1]}")
    return f"| {' | '.join(cells)} |"


def show(ranks: int, again: bool, micro_batch_size: int, max_num_seqs: int) -> str:
    gpus = "1 GPU" if ranks == 1 else f"{ranks} GPUs"
    return f"{gpus}: {micro_batch_size}{' AC' if again else ''}, {max_num_seqs}"


WAYS_OF_8B = {  # of training it: the options, micro-batch and activation checkpointing
    "`--activation-checkpointing --micro-batch-size 1`": (1, True),
    "`--activation-checkpointing`": (8, True),
    "`--micro-batch-size 1`": (1, False),
    "neither": (8, False),
}


def table_of_8b() -> str:
    """GiB of each GPU at the peak of the training."""
    model, counts = on_meta(MODELS["Llama-3-8B"]), (*COUNTS, 16)
    lines = ["| | 1 GPU | " + " | ".join(map(str, counts[1:])) + " |",
             "|---|" + "---|" * len(counts)]
    for name, (micro_batch, again) in WAYS_OF_8B.items():
        cells = [name]
        for ranks in counts:
            need = budget(model, ranks, micro_batch, MAX_NUM_SEQS[0], again)["training, at most"]
            cells.append(f"{need / GIB:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    ArgumentParser(__doc__).parse_args()
    path = ROOT / "bench/README.md"
    text = path.read_text(encoding="utf-8")
    for name, block in (("fits", table()), ("8b", table_of_8b())):
        text = replace_block(text, name, block, "bench/README.md")
        print(f"{block}\n")
    write_text(path, text)


if __name__ == "__main__":
    run_script(main)
