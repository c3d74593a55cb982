"""Tokens per second of sample.generate beside transformers' generate, in one process.

    python bench/sampling.py [--model tasks/toy/model] [--prompts 64] [--k 8]

Both hold the same weights in float32 and get the same problems: k samples of each in one batch, temperature 0.7,
top_p 0.9, at most 64 new tokens, as many threads as torch takes by itself. transformers gets left-padded prompts and
num_return_sequences=k, top_k off as ours has none, and its defaults for all else.

Only real new tokens count: those before a response's stop token, neither that token nor padding. The two draw different
random numbers, so rates are compared, not times. After one unmeasured round the two take turns, ours first and theirs
first alternately; printed are every round, and the medians with their ratio.
"""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from sample import Task, generate, load_checkpoint, read_problems  # noqa: E402
from vote import InputError, option, parse_options, run_script  # noqa: E402

TEMPERATURE, TOP_P, NEW = 0.7, 0.9, 64


@dataclass
class Options:
    model: str = option(str(ROOT / "tasks/toy/model"), "checkpoint folder")
    problems: str = option(str(ROOT / "tasks/toy/train.jsonl"), "JSON lines with a `question` each")
    prompts: int = option(64, "problems taken from the start of that file")
    k: int = option(8, "samples per problem")
    repeats: int = option(5, "measured rounds")
    device: str = option("auto", "auto, cpu, cuda …")


def main() -> None:
    o = parse_options(Options, __doc__)
    try:
        import transformers
    except ImportError as error:
        raise InputError("transformers, to compare with, is not installed: pip install transformers") from error
    model, text = load_checkpoint(o.model, "plain", o.device, "float32")
    device = model.model.norm.weight.device
    theirs = transformers.LlamaForCausalLM.from_pretrained(o.model, dtype=torch.float32).eval().to(device)
    task = Task.load("toy")
    prompts = [text.encode_prompt(text.prompt(task, p["question"])) for p in read_problems(o.problems, o.prompts)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[text.eos] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)

    def ours(seed: int) -> int:
        responses = generate(model, prompts, o.k, max_new_tokens=NEW, temperature=TEMPERATURE, top_p=TOP_P,
                             stop_ids=text.stop_ids, seed=seed, rows=len(prompts) * o.k)
        return sum(len(r.tokens) for row in responses for r in row)

    def transformers_(seed: int) -> int:
        torch.manual_seed(seed)
        out = theirs.generate(padded, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P,
                              top_k=0, max_new_tokens=NEW, num_return_sequences=o.k, eos_token_id=text.stop_ids,
                              pad_token_id=text.eos)[:, longest:]
        stop = torch.isin(out, torch.tensor(text.stop_ids, device=device))
        return int((stop.cumsum(-1) == 0).sum())

    rates: dict = {ours: [], transformers_: []}
    print(f"{len(prompts)} prompts × {o.k} samples, tokens/s")
    for repeat in range(o.repeats + 1):
        for side in list(rates)[:: 1 if repeat % 2 else -1]:
            start = time.perf_counter()
            tokens = side(repeat)
            rate = tokens / (time.perf_counter() - start)
            rates[side] += [rate] if repeat else []  # round 0 warms up
            print(f"  round {repeat}  {side.__name__.strip('_'):12}  {rate:9.0f}  ({tokens} tokens)")
    fast, slow = median(rates[ours]), median(rates[transformers_])
    print(f"ours {fast:.0f} tokens/s, transformers {slow:.0f} tokens/s, ratio {fast / slow:.2f}; {device.type}, "
          f"{torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")


if __name__ == "__main__":
    run_script(main)
