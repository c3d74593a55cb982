"""Tokens per second of sample.generate beside transformers' generate, in one process.

    python bench/sampling.py [--model tasks/toy/model] [--prompts 64] [--k 8]

Both hold the same weights in float32 and get the same problems: k samples of each, temperature 0.7,
top_p 0.9, at most 64 new tokens, torch's own number of threads. Ours takes all in one batch;
transformers does so too, with left-padded prompts, and then one prompt after the other, without
padding. Its top_k is off.

Only the tokens before a response's stop token count. They draw different random numbers, so rates
are compared, not times. After one unmeasured round they take turns at going first; printed are all
rounds, the medians and their ratios.
"""

import platform
import sys
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, integer, run_script
from common.options import load_checkpoint
from sample import SamplingParams, generate
from tasks.task import Task, read_problems

PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=64, max_num_seqs=10**6)


def main() -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", default=str(ROOT / "tasks/toy/model"), help="checkpoint folder")
    add("--problems", default=str(ROOT / "tasks/toy/train.jsonl"), help="JSON lines, `question`")
    add("--prompts", type=integer(1), default=64, help="problems, from the start of that file")
    add("--k", type=integer(1), default=8, help="samples per problem")
    add("--repeats", type=integer(1), default=3, help="measured rounds")
    args = parser.parse_args()
    try:
        import transformers
    except ImportError as error:
        advice = "pip install transformers"
        raise InputError(f"transformers, to compare with, is not installed: {advice}") from error
    model, tokenizer = load_checkpoint(args.model, "plain", "auto", "float32")
    device = model.device
    theirs = transformers.LlamaForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    theirs = theirs.eval().to(device)
    task = Task.load("toy")
    prompts = []
    for problem in read_problems(args.problems, task, args.prompts):
        prompts.append(tokenizer.encode_prompt(tokenizer.prompt_for(task, problem)))
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    padded = [[tokenizer.eos_id] * n + prompt for n, prompt in zip(padding, prompts)]
    mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(padding, prompts)]

    def ours(seed: int) -> int:
        responses = generate(model, prompts, args.k, PARAMS, seed=[seed],
                             stop_ids=tokenizer.stop_ids)
        return sum(len(response.tokens) for row in responses for response in row)

    def transformers_generate(tokens: list[list[int]], mask: list[list[int]]) -> int:
        tokens = torch.tensor(tokens, device=device)
        out = theirs.generate(
            tokens, attention_mask=torch.tensor(mask, device=device), do_sample=True,
            temperature=PARAMS.temperature, top_p=PARAMS.top_p, top_k=0,
            max_new_tokens=PARAMS.max_new_tokens, num_return_sequences=args.k,
            eos_token_id=tokenizer.stop_ids, pad_token_id=tokenizer.eos_id)
        stop_ids = torch.tensor(tokenizer.stop_ids, device=device)
        stops = torch.isin(out[:, tokens.shape[1] :], stop_ids)
        return int((stops.cumsum(-1) == 0).sum())

    def one_batch(seed: int) -> int:
        torch.manual_seed(seed)
        return transformers_generate(padded, mask)

    def one_by_one(seed: int) -> int:
        torch.manual_seed(seed)
        return sum(transformers_generate([prompt], [[1] * len(prompt)]) for prompt in prompts)

    sides = {"ours": ours, "transformers, in one batch": one_batch,
             "transformers, prompt by prompt": one_by_one}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(args.repeats + 1):
        order = list(sides) if repeat % 2 else list(sides)[::-1]
        for side in order:
            started = time.perf_counter()
            n_tokens = sides[side](repeat)
            rate = n_tokens / (time.perf_counter() - started)
            if repeat > 0:  # round 0 warms up
                rates[side].append(rate)
            print(f"round {repeat}  {side:30} {rate:9.0f} tokens/s  ({n_tokens} tokens)")
    for side in sides:
        rate = median(rates[side])
        print(f"{side}: {rate:.0f} tokens/s, ours is {median(rates['ours']) / rate:.2f} times that")
    print(f"{device.type}, {len(prompts)} prompts × {args.k} samples, {torch.get_num_threads()} "
          f"threads, Python {platform.python_version()}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}")


if __name__ == "__main__":
    run_script(main)
