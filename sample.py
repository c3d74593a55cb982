"""Sampling: k responses to each problem, and new problems in the style of given ones.

    python sample.py --task toy --limit 20 --out responses.jsonl
    python sample.py --task gsm8k --model DIR --problems train.jsonl --k 8 --out responses.jsonl
    python vote.py responses.jsonl                                    # then look at the votes

These are steps 1 and 2 of scpo.py. `generate` reads each prompt once, shares
its keys and values among the k rows that continue it, and drops rows as they end.
The random numbers of a response depend on (seed, prompt, sample number, position)
alone: up to the rounding of matrix products, a problem gets the same samples alone
and among a thousand others.

In the comments on shapes
    P  prompts of a batch     T  tokens of the longest one     R  rows: P · k, less those dropped
    N  likeliest tokens that are looked at
"""

import random
import zlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common.checks import check_lengths
from common.cli import ArgumentParser, InputError, path_name, run_script
from common.distributed import all_gather_dict, progress_bar, rank, world_size
from common.files import check_out, write_new
from common.journal import Journal
from common.options import add_sampling_options, load_checkpoint, parse_args
from model import KVCache, Llama
from tasks.chat import ChatTokenizer
from tasks.task import Task, read_problems
from tasks.zebralogic.puzzle import rephrased_puzzle
from vote import show_votes

DROP_BELOW = 7 / 8  # share of unfinished rows at which the others are dropped: it copies the cache
STOP_FN_EVERY = 8  # tokens between two calls of stop_fn, which decodes the end of every row
STOP_FN_TOKENS = 40  # last tokens of a response in which a stop string is looked for
GREEDY = -1  # the number of the sample that is no sample: the likeliest token at every step
# How many of the likeliest tokens are looked at: 64; 1,024 in rows where 64 hold
# less than top_p; then all. Of a large vocabulary it is far cheaper to find 64 than
# 1,024.
NUCLEUS = (64, 1024)

StopFn = Callable[[list[int]], bool]  # whether these tokens end a response


@dataclass(frozen=True)
class SamplingParams:
    """How responses are sampled. Each field is an option of the scripts."""

    temperature: float  # divides the logits; 0 is greedy
    top_p: float  # the share of probability that is kept at each token
    max_new_tokens: int  # a longer response is cut off
    max_num_seqs: int = 512  # rows decoded at once

    @classmethod
    def from_args(cls, args: Namespace) -> "SamplingParams":
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


@dataclass
class Response:
    tokens: list[int]  # without the stop token; a stop string stays, and response_row cuts it
    ended: bool  # False: cut off at max_new_tokens


@torch.inference_mode()
def generate(
    model: Llama,
    prompts: list[list[int]],
    k: int,
    params: SamplingParams,
    *,
    seed: Sequence[int],
    stop_ids: Sequence[int] = (),
    stop_fn: StopFn | None = None,
    first_sample: int = 0,
    journal: Journal | None = None,
    desc: str = "",
) -> list[list[Response]]:
    """k responses to each prompt (a list of tokens), in the order of `prompts`.

    stop_ids: tokens that end a response.
    stop_fn: ends one by its text, asked every STOP_FN_EVERY tokens; that text and
    what was drawn behind it stay, and ChatTokenizer.response_row cuts them.
    first_sample: the index of the first sample; each index has its own random
    numbers, and the response with index GREEDY, which comes before 0, has none.
    journal: keeps finished batches on disk, and has those of a run that was stopped.
    desc: names the progress bar. Raises InputError for a prompt that is too long for the model.
    """
    longest = max(map(len, prompts), default=0)
    if longest + params.max_new_tokens > model.context_length:
        raise InputError(
            f"a prompt of {longest} tokens and max_new_tokens {params.max_new_tokens} exceed the "
            f"model's max_position_embeddings {model.context_length}; lower --max-new-tokens or "
            "drop the longest problems")
    samples = range(first_sample, first_sample + k)
    responses: dict[tuple[int, int], Response] = {}  # by prompt and number of the sample
    todo = []
    for batch in make_batches(prompts, samples, params.max_num_seqs):
        rows = [(prompts[i], sample) for i, sample in batch]
        key = journal.key(list(seed), sorted(stop_ids), astuple(params), rows) if journal else ""
        if journal and key in journal.batches:
            finished = [Response(*response) for response in journal.batches[key]]
            responses.update(zip(batch, finished))
        else:
            todo.append((batch, key))
    with progress_bar(desc=desc, unit="tok", unit_scale=True) as bar:
        for batch, key in todo[rank() :: world_size()]:  # whole ones: any ranks, the same samples
            uniforms = []
            for i, sample in batch:
                uniforms.append(draw_uniforms(seed, prompts[i], sample, params.max_new_tokens))
            distinct = [prompts[i] for i in dict.fromkeys(i for i, _ in batch)]
            rows_each = len(batch) // len(distinct)
            cache, logits = prefill(model, distinct, rows_each, params.max_new_tokens)
            decoded = decode(
                model, cache, logits, np.stack(uniforms), params, set(stop_ids), stop_fn, bar)
            del cache, logits  # before the next batch makes its own
            if journal:
                journal.add(key, [astuple(response) for response in decoded])
            responses.update(zip(batch, decoded))
            bar.set_postfix_str(f"{len(responses)}/{k * len(prompts)} responses")
    responses = all_gather_dict(responses)
    return [[responses[i, sample] for sample in samples] for i in range(len(prompts))]


def make_batches(
    prompts: list[list[int]], samples: range, max_num_seqs: int
) -> list[list[tuple[int, int]]]:
    """Batches of rows (prompt, number of the sample), the samples of a prompt side by side.

    They are in several batches if they are more than max_num_seqs.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding
    batches = []
    for first in range(0, len(samples), max_num_seqs):
        part = samples[first : first + max_num_seqs]
        size = max_num_seqs // len(part)  # prompts of a batch
        for start in range(0, len(order), size):
            batches.append([(i, n) for i in order[start : start + size] for n in part])
    return batches[::-1]  # what needs the most memory comes first


def draw_uniforms(seed: Sequence[int], prompt: list[int], sample: int, count: int) -> np.ndarray:
    """(count,) numbers in [0, 1), one for each token of a response. Of a greedy one all are 0.

    At 0 sample_nucleus draws the likeliest token.
    """
    if sample == GREEDY:
        return np.zeros(count, dtype=np.float32)
    problem = zlib.crc32(np.asarray(prompt, dtype=np.int32).tobytes())
    return np.random.default_rng([*seed, problem, sample]).random(count, dtype=np.float32)


def prefill(
    model: Llama, prompts: list[list[int]], k: int, max_new_tokens: int
) -> tuple[KVCache, Tensor]:
    """Read each prompt once: the cache and the next logits (R, vocab_size), of k rows for each."""
    tokens = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)  # (P, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)  # (P,)
    cache = KVCache(lengths, k, max_new_tokens)
    hidden = model.model(tokens.to(model.device), cache)  # (P, T, hidden_size)
    prompt = torch.arange(len(prompts), device=model.device)
    last = hidden[prompt, lengths - 1]  # (P, hidden_size)
    logits = model.compute_logits(last)  # (P, vocab_size)
    return cache, logits.repeat_interleave(k, dim=0)


def decode(
    model: Llama, cache: KVCache, logits: Tensor, uniforms: np.ndarray, params: SamplingParams,
    stop_ids: set[int], stop_fn: StopFn | None, bar: tqdm,
) -> list[Response]:
    """Continue every row of the cache until it ends or has max_new_tokens.

    logits (R, vocab_size): of the first new token. uniforms (R, max_new_tokens).
    """
    responses = [Response([], False) for _ in range(len(logits))]
    response_of = np.arange(len(logits))  # (R,): which response each row of the cache continues
    for step in range(params.max_new_tokens):
        check_finite(logits, model)
        draws = torch.from_numpy(uniforms[response_of, step]).to(logits.device)  # (R,)
        tokens = next_token(logits, draws, params.temperature, params.top_p)  # (R,)
        unfinished = []
        for row, token in enumerate(tokens.tolist()):
            response = responses[response_of[row]]
            if response.ended or token in stop_ids:  # ended rows stay until enough can be dropped
                response.ended = True
                continue
            response.tokens.append(token)
            if stop_fn and step % STOP_FN_EVERY == 0:
                response.ended = stop_fn(response.tokens)
            if not response.ended:
                unfinished.append(row)
        bar.update(len(unfinished))
        if not unfinished or step + 1 == params.max_new_tokens:
            break
        if len(unfinished) <= DROP_BELOW * len(response_of):
            rows = torch.tensor(unfinished, device=tokens.device)
            cache.select(rows)
            response_of, tokens = response_of[unfinished], tokens[rows]
        logits = model(tokens[:, None], cache)[:, 0]  # (R, vocab_size)
    return responses


def next_token(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row, (R,), from logits (R, vocab_size) and uniforms (R,) in [0, 1).

    Nucleus sampling (arXiv 1904.09751): only the fewest likeliest tokens that
    together have probability top_p can be drawn. Temperature 0 is greedy.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / temperature, dim=-1)  # (R, vocab_size)
    return sample_nucleus(probs, uniforms, top_p, NUCLEUS)


def check_finite(logits: Tensor, model: Llama) -> None:
    if not (logits.amax(-1).abs() < 1e30).all():  # the largest is NaN if one is
        advice = "its weights are broken, or too large for this --dtype"
        raise InputError(f"{model.folder}: its logits are NaN or infinite: {advice}")


def sample_nucleus(
    probs: Tensor, uniforms: Tensor, top_p: float, sizes: Sequence[int]
) -> Tensor:
    """One token per row by inverse CDF: (R,) from probs (R, vocab_size) and uniforms (R,).

    The sizes[0] likeliest tokens are looked at. Rows in which they hold less than top_p are drawn
    again from sizes[1], and so on; after the last size, from all tokens.
    """
    if sizes and sizes[0] < probs.shape[-1]:
        likeliest, ids = probs.topk(sizes[0], dim=-1)  # (R, N) each, descending
    else:
        likeliest, ids = probs.sort(dim=-1, descending=True, stable=True)
        sizes = ()
    likelier = likeliest.cumsum(-1) - likeliest  # (R, N): what the tokens before hold together
    nucleus = likeliest * (likelier < top_p)  # 0 from where they hold top_p already
    reached = nucleus.cumsum(-1)  # (R, N)
    index = (reached <= uniforms[:, None] * reached[:, -1:]).sum(-1)  # (R,)
    last = (nucleus > 0).sum(-1) - 1  # rounding may push the index one too far
    tokens = ids.gather(-1, torch.minimum(index, last)[:, None])[:, 0]
    wider = (likeliest.sum(-1) < top_p).nonzero()[:, 0]  # rows whose nucleus is larger than that
    if sizes and len(wider):
        tokens[wider] = sample_nucleus(probs[wider], uniforms[wider], top_p, sizes[1:])
    return tokens


# --------------------------------------------------------------------------------------------
# Steps 1 and 2: problems and responses


def answer_problems(
    model: Llama,
    tokenizer: ChatTokenizer,
    task: Task,
    problems: list[dict],
    k: int,
    params: SamplingParams,
    *,
    seed: Sequence[int],
    first_sample: int = 0,
    journal: Journal | None = None,
    desc: str = "",
) -> list[dict]:
    """k responses to each problem: lines of responses.jsonl. Gold answers are not looked at."""
    stops = tokenizer.stop_strings(task)

    def says_stop(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens[-STOP_FN_TOKENS:])
        return any(stop in text for stop in stops)

    prompts = [tokenizer.prompt_for(task, problem) for problem in problems]
    sampled = generate(
        model, [tokenizer.encode_prompt(prompt) for prompt in prompts], k, params, seed=seed,
        stop_ids=tokenizer.stop_ids, stop_fn=says_stop if stops else None,
        first_sample=first_sample, journal=journal, desc=desc)
    rows = []
    for problem, responses in zip(problems, sampled):
        drawn = [(response.tokens, response.ended) for response in responses]
        rows.append(tokenizer.response_row(task, problem, drawn))
    return rows


def write_problems(
    model: Llama,
    tokenizer: ChatTokenizer,
    task: Task,
    problems: list[dict],
    count: int,
    params: SamplingParams,
    *,
    seed: Sequence[int],
    known: Sequence[str] = (),
    fits: Callable[[dict], bool] = lambda problem: True,
    journal: Journal | None = None,
    name: str = "new",
) -> tuple[list[dict], dict[str, int]]:
    """New problems in the style of `problems`, without answers (paper, section 2).

    The model reads random ones as examples and writes another. A puzzle is
    rephrased from one: one attribute gets new values, another is replaced. A new
    problem is dropped if it was cut off, is malformed, is too long (not `fits`, or
    its examples do not), or repeats one of `problems`, of the questions `known` or
    of the new ones.

    Returns the problems that are kept, and how many of the `count` were dropped for which reason.
    """
    rng = random.Random(f"{list(seed)} examples")
    examples = [rng.sample(problems, min(task.n_examples, len(problems))) for _ in range(count)]
    prompts = []
    for shown in examples:
        attributes = rng.sample(shown[0]["header"][1:], 2) if task.puzzle else ()
        prompt = tokenizer.apply_template(task.writer_prompt(shown, attributes))
        prompts.append(tokenizer.encode_prompt(prompt))
    longest = model.context_length - params.max_new_tokens
    # No two rows share a prompt here, and each prompt is n_examples problems long.
    params = replace(params, max_num_seqs=max(1, params.max_num_seqs // task.n_examples))
    stop_ids = tokenizer.stop_ids
    if not task.puzzle:  # it is one line
        stop_ids = tokenizer.newline_ids() + stop_ids
    fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= longest]
    sampled = generate(
        model, [prompts[i] for i in fitting], 1, params, seed=seed, stop_ids=stop_ids,
        journal=journal, desc=f"{name}: writing problems")
    seen = {words_of(question) for question in known}
    seen.update(words_of(problem["question"]) for problem in problems)
    kept, dropped = [], {"cut off": 0, "malformed": 0, "too long": 0, "seen before": 0}
    dropped["too long"] = count - len(fitting)
    for [response], i in zip(sampled, fitting):
        shown = examples[i]
        written = tokenizer.decode(response.tokens)
        problem = {"question": written.strip().removeprefix("Q:").strip()}
        if task.puzzle:
            problem = rephrased_puzzle(written, shown[0])
        words = words_of(problem["question"]) if problem else ""
        if not response.ended:
            dropped["cut off"] += 1
        elif not words:
            dropped["malformed"] += 1
        elif words in seen:
            dropped["seen before"] += 1
        elif not fits(problem):
            dropped["too long"] += 1
        else:
            seen.add(words)
            kept.append({"id": f"{name}-{len(kept)}", **problem})
    return kept, dropped


def words_of(question: str) -> str:
    """What two copies of a question share: its words, without case, spacing and punctuation."""
    letters = [c if c.isalnum() else " " for c in question.lower()]
    return " ".join("".join(letters).split())


# --------------------------------------------------------------------------------------------
# As a script


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sampling_options(parser)
    parser.add_argument("--out", type=path_name, default="responses.jsonl",
        help="must not exist yet")
    args = parse_args(parser)
    check_out(args.out)
    task = Task.load(args.task)
    problems = read_problems(args.problems, task, args.limit)
    check_lengths(args.problems, args.model, task, args)
    model, tokenizer = load_checkpoint(args.model, args.chat, args.device, args.dtype,
                                       args.system)
    journal = Journal(args.out, args.model, args)
    rows = answer_problems(model, tokenizer, task, problems, args.k, SamplingParams.from_args(args),
                           seed=[args.seed], journal=journal, desc="sampling")
    write_new(args.out, rows)
    print(show_votes(rows[0], args.task))
    print(f"{len(rows)} problems × {args.k} responses → {args.out}")


if __name__ == "__main__":
    run_script(main)
