"""Tokens per second of sample.generate beside transformers' generate, in one process.

    python bench/sampling.py [--model tasks/toy/model] [--prompts 64] [--k 8]

Both hold the same weights in float32 and get the same problems: k samples of each, temperature 0.7, top_p 0.9, at most
64 new tokens, torch's own number of threads. Ours takes all in one batch; transformers does so too, with left-padded
prompts, and then one prompt after the other, without padding. Its top_k is off.

Only the tokens before a response's stop token count. They draw different random numbers, so rates are compared, not
times. After one unmeasured round they take turns at going first; printed are every round, the medians and their ratios.
"""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sample import Task, generate, load_checkpoint, read_problems  # noqa: E402
from vote import InputError, option, parse_options, run_script  # noqa: E402

TEMPERATURE, TOP_P, NEW = 0.7, 0.9, 64


@dataclass
class Options:
    model: str = option(str(ROOT / "tasks/toy/model"), "checkpoint folder")
    problems: str = option(str(ROOT / "tasks/toy/train.jsonl"), "JSON lines with a `question` each")
    prompts: int = option(64, "problems, from the start of that file")
    k: int = option(8, "samples per problem")
    repeats: int = option(3, "measured rounds")


def main() -> None:
    o = parse_options(Options, __doc__)
    try:
        import transformers
    except ImportError as error:
        raise InputError("transformers, to compare with, is not installed: pip install transformers") from error
    model, text = load_checkpoint(o.model, "plain", "auto", "float32")
    device = model.device
    theirs = transformers.LlamaForCausalLM.from_pretrained(o.model, dtype=torch.float32).eval().to(device)
    task = Task.load("toy")
    prompts = [text.encode_prompt(text.prompt(task, p)) for p in read_problems(o.problems, task, o.prompts)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[text.eos] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)

    def ours(seed: int) -> int:
        responses = generate(model, prompts, o.k, max_new_tokens=NEW, temperature=TEMPERATURE, top_p=TOP_P,
                             stop_ids=text.stop_ids, seed=seed, rows=len(prompts) * o.k)
        return sum(len(r.tokens) for row in responses for r in row)

    def transformers_generate(tokens: torch.Tensor, mask: torch.Tensor) -> int:
        out = theirs.generate(tokens, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P,
                              top_k=0, max_new_tokens=NEW, num_return_sequences=o.k, eos_token_id=text.stop_ids,
                              pad_token_id=text.eos)[:, tokens.shape[1] :]
        return int((torch.isin(out, torch.tensor(text.stop_ids, device=device)).cumsum(-1) == 0).sum())

    def one_batch(seed: int) -> int:
        torch.manual_seed(seed)
        return transformers_generate(padded, mask)

    def one_by_one(seed: int) -> int:
        torch.manual_seed(seed)
        return sum(transformers_generate(row[None], torch.ones_like(row[None]))
                   for row in (torch.tensor(prompt, device=device) for prompt in prompts))

    sides = {"ours": ours, "transformers, in one batch": one_batch, "transformers, prompt by prompt": one_by_one}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(o.repeats + 1):
        for side in list(sides)[:: 1 if repeat % 2 else -1]:
            start, tokens = time.perf_counter(), sides[side](repeat)
            rate = tokens / (time.perf_counter() - start)
            rates[side] += [rate] if repeat else []  # round 0 warms up
            print(f"round {repeat}  {side:30} {rate:9.0f} tokens/s  ({tokens} tokens)")
    medians = {side: median(values) for side, values in rates.items()}
    for side, rate in medians.items():
        print(f"{side}: {rate:.0f} tokens/s, ours is {medians['ours'] / rate:.2f} times that")
    print(f"{device.type}, {len(prompts)} prompts × {o.k} samples, {torch.get_num_threads()} threads, Python "
          f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    run_script(main)
