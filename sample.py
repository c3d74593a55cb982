"""Sampling: k responses to each problem, and new problems in the style of given ones.

    python sample.py --task toy --limit 20 --out /tmp/responses.jsonl
    python sample.py --task gsm8k --model DIR --problems train.jsonl --k 8 --out responses.jsonl
    python vote.py /tmp/responses.jsonl                                 # then look at the votes

`generate` reads each prompt once, shares its keys and values among the k rows that continue it, and drops rows as they
finish. The random numbers of a response depend only on (seed, prompt, sample number, position), never on what else is
in the batch: up to the rounding of matrix products, a problem gets the same samples alone and among a thousand others.

Letters in shape comments
    P  prompts of a batch      R  rows: P·k, less those dropped      T  longest prompt      C  hidden_size
    V  vocab_size              N  likeliest tokens looked at
"""

import json
import os
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from model import Checkpoint, KVCache, Llama, gathered, rank_and_size
from tasks.zebralogic.puzzle import json_form, rephrased_puzzle, table_header
from vote import (EXTRACTORS, InputError, check_options, option, parse_options, read_json, read_jsonl, run_script,
                  show_votes, write_jsonl)

TASKS = Path(__file__).parent / "tasks"
Loaded = TypeVar("Loaded", bound=Checkpoint)
NUCLEUS = 1024  # likeliest tokens looked at first; only if they hold less than top_p is the whole vocabulary sorted
DROP_BELOW = 7 / 8  # of the rows unfinished: dropping copies the cache, so not for every single row that ends
STOP_TEXT_EVERY = 8  # tokens between two looks for a stop string, since looking decodes every row
STOP_TEXT_IN = 40  # last tokens that are looked at

# ---------------------------------------------------------------------------------------------------------------------
# From logits to tokens


@dataclass
class Response:
    tokens: list[int]  # without the stop token
    ended: bool  # False: cut off at max_new_tokens


def next_token(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token per row from logits (R, V) and uniforms (R,) in [0, 1): (R,).

    temperature 0 is greedy. Otherwise the smallest set of likeliest tokens whose probability reaches `top_p` (nucleus
    sampling, arXiv 1904.09751), walked from the likeliest until its share exceeds the uniform (inverse CDF).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.float() / temperature, dim=-1)  # (R, V)
    likeliest, ids = probs.topk(min(NUCLEUS, probs.shape[-1]), dim=-1)  # (R, N), descending
    tokens = walk(likeliest, ids, uniforms, top_p)
    flat = (likeliest.sum(-1) < top_p).nonzero()[:, 0]  # row by row, so that no row depends on the company it is in
    if likeliest.shape[-1] < probs.shape[-1] and len(flat):
        tokens[flat] = walk(*probs[flat].sort(dim=-1, descending=True, stable=True), uniforms[flat], top_p)
    return tokens


def walk(likeliest: Tensor, ids: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Inverse CDF over the nucleus of `ids` (R, N), whose probabilities descend: one token per row, (R,)."""
    reached = likeliest.cumsum(-1)
    nucleus = likeliest * (reached - likeliest < top_p)  # zero from where the tokens before already hold top_p
    reached = nucleus.cumsum(-1)
    index = (reached <= uniforms[:, None] * reached[:, -1:]).sum(-1)  # (R,) first token past the uniform
    last = (nucleus > 0).sum(-1) - 1  # rounding may push the index one too far
    return ids.gather(-1, torch.minimum(index, last)[:, None])[:, 0]


def uniforms_of(seed: Sequence[int], prompt: list[int], samples: range, length: int) -> np.ndarray:
    """(len(samples), length) uniforms in [0, 1), a function of seed, prompt, sample number and position alone."""
    problem = zlib.crc32(np.asarray(prompt, dtype=np.int32).tobytes())
    return np.stack([np.random.default_rng([*seed, problem, sample]).random(length, dtype=np.float32)
                     for sample in samples])


@torch.inference_mode()
def generate(model: Llama, prompts: list[list[int]], k: int, *, max_new_tokens: int, temperature: float = 0.7,
             top_p: float = 0.9, stop_ids: Sequence[int] = (), seed: int | Sequence[int] = 0, first_sample: int = 0,
             rows: int = 512, stopped: Callable[[list[int]], bool] = lambda tokens: False,
             progress: str = "") -> list[list[Response]]:
    """k responses to each prompt (token lists), in the order of `prompts`.

    seed may be several numbers, say (seed, round). Samples are numbered from `first_sample`. At most `rows` responses
    are decoded at once. `stopped(tokens)` may end a response by its text. `progress` names a tqdm bar, in tokens.
    """
    seed = [seed] if isinstance(seed, int) else list(seed)
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > context_length(model):
        raise InputError(f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} exceed the model's "
                         f"max_position_embeddings {context_length(model)}; lower --max-new-tokens or drop the longest "
                         "problems")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths together: little padding
    size = max(1, rows // k)
    batches = [order[start : start + size] for start in range(0, len(order), size)][::-1]  # what needs most, first
    rank, ranks = rank_and_size()
    responses: dict[int, list[Response]] = {}
    with tqdm(desc=progress, unit="tok", unit_scale=True, disable=not progress or rank > 0, leave=False) as bar:
        for batch in batches[rank::ranks]:  # whole batches, so that the files are the same for any number of ranks
            uniforms = np.concatenate([
                uniforms_of(seed, prompts[i], range(first_sample, first_sample + k), max_new_tokens) for i in batch])
            cache, logits = prefill(model, [prompts[i] for i in batch], k, max_new_tokens)
            choose = lambda logits, live, step: next_token(
                logits, torch.from_numpy(uniforms[live, step]).to(logits.device), temperature, top_p)
            decoded = decode(model, cache, logits, choose, max_new_tokens, set(stop_ids), stopped, bar)
            del cache, logits  # before the next batch makes its own
            for place, i in enumerate(batch):
                responses[i] = decoded[place * k : (place + 1) * k]
            bar.set_postfix_str(f"{len(responses)}/{sum(map(len, batches[rank::ranks]))} prompts")
    responses = gathered(responses)
    return [responses[i] for i in range(len(prompts))]


def context_length(model: Llama) -> int:
    """Tokens that the model was trained to read at most; no limit if its config.json names none."""
    return model.raw_config.get("max_position_embeddings") or 2**31


def prefill(model: Llama, prompts: list[list[int]], k: int, max_new_tokens: int) -> tuple[KVCache, Tensor]:
    """Read each prompt once; the cache and the next token's logits (R, V), each prompt's repeated for its k rows."""
    device = model.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)  # (P,)
    tokens = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)  # (P, T), on the right
    cache = KVCache(model.config, len(prompts), tokens.shape[1] + max_new_tokens, model.model.norm.weight.dtype, device)
    hidden = model.model(tokens.to(device), cache)  # (P, T, C)
    cache.lengths = lengths  # what padding wrote lies beyond: never seen, later overwritten
    logits = model.head(hidden[torch.arange(len(prompts), device=device), lengths - 1])  # (P, V)
    if k > 1:
        share = torch.arange(len(prompts), device=device).repeat_interleave(k)  # (R,)
        cache.select(share)
        logits = logits[share]
    return cache, logits


def decode(model: Llama, cache: KVCache, logits: Tensor, choose: Callable, max_new_tokens: int, stop_ids: set[int],
           stopped: Callable[[list[int]], bool], bar: tqdm) -> list[Response]:
    """Continue every row of the cache until a stop or max_new_tokens; `choose(logits, live, step)` picks the tokens."""
    responses = [Response([], False) for _ in range(len(logits))]
    live = np.arange(len(logits))  # (R,) the response that each row of the cache is writing
    for step in range(max_new_tokens):
        tokens = choose(logits, live, step)  # (R,)
        unfinished = []
        for row, (response, token) in enumerate(zip([responses[i] for i in live], tokens.tolist())):
            if token in stop_ids or response.ended:
                response.ended = True
                continue
            response.tokens.append(token)
            response.ended = step % STOP_TEXT_EVERY == 0 and stopped(response.tokens)
            if not response.ended:
                unfinished.append(row)
        bar.update(len(unfinished))
        if not unfinished or step + 1 == max_new_tokens:
            break
        if len(unfinished) <= DROP_BELOW * len(live):
            rows = torch.tensor(unfinished, device=tokens.device)
            cache.select(rows)
            live, tokens = live[unfinished], tokens[rows]
        logits = model(tokens[:, None], cache)[:, 0]  # (R, V)
    return responses


# ---------------------------------------------------------------------------------------------------------------------
# Tasks, text and problems


@dataclass(frozen=True)
class Task:
    """`tasks/NAME/task.json`: how problems are shown to a model, and the defaults of its runs."""

    name: str
    prompt: str  # what a base model reads, with {question}; of a puzzle also {skeleton}, the JSON to fill in
    chat: str  # what a chat model is told, likewise
    example: str  # one seed problem among those shown to the problem writer, with {question}
    new_problem: str  # what the writer reads, with {examples}; of a puzzle also {attributes}, those to change
    defaults: dict  # option name → value; per-round options hold a list
    text: str = "question"  # the field of a row that holds its problem
    examples: int = 4  # seed problems shown to the writer
    stop: tuple[str, ...] = ()  # strings that end a base model's response, which tends to run on with another problem

    @classmethod
    def load(cls, name: str) -> "Task":
        path = TASKS / name / "task.json"
        if not path.exists() or name not in EXTRACTORS:
            found = sorted(p.parent.name for p in TASKS.glob("*/task.json") if p.parent.name in EXTRACTORS)
            raise InputError(f"--task {name}: no such task; there are {', '.join(found)}")
        raw = read_json(path)
        raw = {key: "\n".join(map(str, v)) if key != "stop" and isinstance(v, list) else v for key, v in raw.items()}
        for f in fields(cls)[1:]:  # the name is the folder's
            kind = {"defaults": dict, "examples": int, "stop": list}.get(f.name, str)
            absent = f.name not in raw and f.default is MISSING
            if absent or f.name in raw and not isinstance(raw[f.name], kind):
                raise InputError(f"{path}: `{f.name}` must be there, as a JSON {kind.__name__}")
        if strange := raw.keys() - {f.name for f in fields(cls)[1:]}:
            raise InputError(f"{path}: `{min(strange)}` is no field of a task")
        needed = ("k", "tau", "temperature", "top_p", "new_problems", "beta", "alpha", "lr", "epochs", "batch_size",
                  "max_new_tokens")
        if absent := [key for key in needed if key not in raw["defaults"]]:
            raise InputError(f"{path}: `defaults` has no {', '.join(absent)}")
        return cls(name=name, **raw)

    @property
    def writes_lines(self) -> bool:
        """Whether a new problem is one line; else it is a puzzle, rephrased from one example."""
        return self.examples > 1

    def file(self, name: str) -> str | None:
        """The default model, problems or test set: shipped with the miniature, None for the other tasks."""
        return str(TASKS / self.name / self.defaults[name]) if name in self.defaults else None


# How each family of chat models marks turns, and the token that closes one. "plain" adds nothing: base models.
CHATS = {
    "plain": ("{prompt}", None),
    "chatml": ("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
}


class Text:
    """The text side of a checkpoint folder: its tokenizer, its chat format, and the tokens that end a response."""

    def __init__(self, folder: str | Path, chat: str = "auto"):
        """chat: a key of CHATS, or "auto": read off the folder's files. Raises InputError for an unusable folder."""
        folder = Path(folder)
        if not (folder / "tokenizer.json").exists():
            raise InputError(f"{folder}: has no tokenizer.json; copy it from the original checkpoint")
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.tokenizer.no_truncation()  # settings that some folders carry would cut prompts silently
            self.tokenizer.no_padding()
        except Exception as error:  # the library raises bare Exceptions
            raise InputError(f"{folder}/tokenizer.json: not a tokenizer file ({error})") from error
        has_template = (folder / "chat_template.jinja").exists() or \
            "chat_template" in read_json(folder / "tokenizer_config.json")
        if chat == "auto":
            marks = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}
            known = [name for name, mark in marks.items() if self.tokenizer.token_to_id(mark) is not None]
            chat = known[0] if known and has_template else "plain"
        self.chat = chat
        self.frame, closing = CHATS[chat]
        if closing and self.tokenizer.token_to_id(closing) is None:
            raise InputError(f"--chat {chat}: the tokenizer of {folder} has no {closing} token; try --chat plain")
        stops = []
        for name in ("generation_config.json", "config.json"):
            ids = read_json(folder / name).get("eos_token_id")
            stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
        stops = ([self.tokenizer.token_to_id(closing)] if closing else []) + stops
        if not stops:
            raise InputError(f"{folder}: neither generation_config.json nor config.json names an eos_token_id")
        self.eos = stops[0]  # what a response is trained to end with
        self.stop_ids = sorted(set(stops))

    def prompt(self, task: Task, problem: dict) -> str:
        filled = task.prompt if self.chat == "plain" else task.chat
        if not task.writes_lines:
            filled = filled.replace("{skeleton}", json_form(problem))
        filled = filled.replace("{question}", problem["question"])
        return self.frame.replace("{prompt}", filled)

    def judged(self, question: str, response: str) -> tuple[list[int], list[int], int]:
        """A conversation of one turn as a reward model reads it: prompt, response, and where the prompt closes.

        A chat template trims both texts. The user's turn is the bare question, and closes before the assistant's opens.
        """
        if self.chat != "plain":
            question, response = question.strip(), response.strip()
        ids = self.encode_prompt(self.frame.replace("{prompt}", question))
        closes = len(ids) - 1 if self.chat == "plain" else len(ids) - 1 - ids[::-1].index(self.eos)
        return ids, self.encode_response(response), closes

    def writer_prompt(self, task: Task, examples: Sequence[dict], attributes: Sequence[str] = ()) -> str:
        joined = "".join(task.example.replace("{question}", " ".join(p["question"].split()) if task.writes_lines
                                              else p["question"].strip()) for p in examples)
        filled = task.new_problem.replace("{examples}", joined).replace("{attributes}", json.dumps(list(attributes)))
        return self.frame.replace("{prompt}", filled)

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a prompt. The tokenizer adds its own BOS, unless the chat format has already written one."""
        return self.tokenizer.encode(text, add_special_tokens=not text.startswith("<|begin_of_text|>")).ids

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        """Tokens of a response as it is trained on: encoded apart from its prompt, with EOS unless it was cut off."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids + [self.eos] * ended

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def newline_ids(self) -> list[int]:
        """Every token that contains a line break: they end a new problem, which is one line."""
        return [i for i in range(self.tokenizer.get_vocab_size()) if "\n" in self.decode([i])]


def read_problems(path: str | Path | None, task: Task, limit: int | None = None) -> list[dict]:
    """Problems of a JSON-lines file (or .gz) as their publisher ships it, each with `id` and `question`, first `limit`.

    Raises InputError for a missing or empty file, or naming the line for broken JSON and for a row that is no problem.
    """
    def complaint(row: dict) -> str | None:
        if not isinstance(row.get("id", ""), (str, int, type(None))):
            return "`id` must be a text or a number"
        if not isinstance(row[task.text], str) or not row[task.text].strip():
            return f"`{task.text}` must be a text, found {row[task.text]!r}"
        if task.writes_lines:
            return None
        header = table_header(row)
        good = isinstance(header, list) and len(header) > 2 and all(isinstance(name, str) for name in header)
        return None if good and re.fullmatch(r"[1-9]\*[1-9]", str(row.get("size"))) else (
            "a puzzle needs the `size` of its table, as 3*4 (houses * attributes), and its `header`, of texts")

    if path is None:
        raise InputError(f"--problems: task {task.name} ships none; give JSON lines with a `{task.text}` each")
    rows = read_jsonl(path, (task.text,), complaint)[:limit]
    if not rows:
        raise InputError(f"{path}: holds no problem")
    stem = Path(path).stem.removesuffix(".jsonl")
    problems = []
    for number, row in enumerate(rows):
        name = row.get("id", row.get("unique_id"))
        problems.append({**row, "id": f"{stem}-{number}" if name is None else name, "question": row[task.text]} | (
            {} if task.writes_lines else {"header": table_header(row)}))
    if len({problem["id"] for problem in problems}) < len(problems):
        raise InputError(f"{path}: two problems have the same id; make the ids differ, or leave them out")
    return problems


def unlabelled(problem: dict) -> dict:
    """What a model may be shown of a problem: its text and, of a puzzle, the shape of the table to fill in."""
    return {key: problem[key] for key in ("id", "question", "size", "header") if key in problem}


def answer_problems(model: Llama, text: Text, task: Task, problems: list[dict], k: int, **how) -> list[dict]:
    """k responses to each problem: rows for `responses.jsonl`, in order. Gold answers are not looked at, nor copied.

    how: what `generate` takes beside.
    """
    stops = task.stop if text.chat == "plain" else ()
    prompts = [text.prompt(task, p) for p in problems]
    sampled = generate(model, [text.encode_prompt(p) for p in prompts], k, stop_ids=text.stop_ids, **how,
                       stopped=lambda tokens: any(s in text.decode(tokens[-STOP_TEXT_IN:]) for s in stops))
    rows = []
    for problem, prompt, responses in zip(problems, prompts, sampled):
        texts, ended = [], []
        for response in responses:
            whole = text.decode(response.tokens)
            cut = min((whole.find(s) for s in stops if s in whole), default=len(whole))
            texts.append(whole[:cut])
            ended.append(response.ended or cut < len(whole))
        rows.append({"id": problem["id"], "question": problem["question"], "prompt": prompt, "responses": texts,
                     "ended": ended})
    return rows


def text_key(question: str) -> str:
    """What two copies of a question have in common: their words, whatever the case, spacing and punctuation."""
    return " ".join("".join(c if c.isalnum() else " " for c in question.lower()).split())


def write_problems(model: Llama, text: Text, task: Task, problems: list[dict], count: int, *, known: list[str],
                   seed: Sequence[int], fits: Callable[[dict], bool] = lambda problem: True, name: str = "new",
                   **how) -> tuple[list[dict], dict]:
    """New problems in the style of `problems` (paper, section 2): four random ones as examples, then an open line.

    A puzzle is rephrased from one example: the values of one attribute are renamed, another attribute is replaced.
    Only questions are written, no answers. Those cut off, malformed, too long for whoever is to answer (not `fits`), or
    equal to one of `problems`, of `known` or to each other are dropped. Returns the problems kept, and how many of the
    `count` were dropped for which reason.
    """
    draw = random.Random(f"{list(seed)} examples")
    examples = [draw.sample(problems, min(task.examples, len(problems))) for _ in range(count)]
    changed = [[] if task.writes_lines else draw.sample(shown[0]["header"][1:], 2) for shown in examples]
    prompts = [text.encode_prompt(text.writer_prompt(task, *both)) for both in zip(examples, changed)]
    sampled = generate(model, prompts, 1, seed=seed, progress=f"{name}: writing problems", **how,
                       stop_ids=text.newline_ids() + text.stop_ids if task.writes_lines else text.stop_ids)
    seen = {text_key(q) for q in [*(p["question"] for p in problems), *known]}
    kept, dropped = [], {"cut off": 0, "malformed": 0, "too long": 0, "seen before": 0}
    for [response], shown in zip(sampled, examples):
        written = text.decode(response.tokens)
        problem = {"question": written.strip().removeprefix("Q:").strip()} if task.writes_lines else \
            rephrased_puzzle(written, shown[0])
        key = text_key(problem["question"]) if problem else ""
        reason = "cut off" if not response.ended else "malformed" if not key else "seen before" if key in seen else \
            None if fits(problem) else "too long"
        if reason:
            dropped[reason] += 1
        else:
            seen.add(key)
            kept.append({"id": f"{name}-{len(kept)}", **problem})
    return kept, dropped


# ---------------------------------------------------------------------------------------------------------------------
# As a script: problems in, responses out


@dataclass
class SamplingOptions:
    """What sample.py, eval.py and train.py share. None stands for the task's own value."""

    task: str = option("toy", "folder of tasks/: prompts, and values for most options without a default")
    model: str | None = option(None, "checkpoint folder in Hugging Face's Llama layout")
    problems: str | None = option(None, "JSON lines as the task's publisher ships them")
    k: int | None = option(None, "responses per problem")
    temperature: float | None = option(None, "divides the logits; 0 is greedy (paper: 0.7)")
    top_p: float | None = option(None, "share of probability kept at each token (paper: 0.9)")
    max_new_tokens: int | None = option(None, "tokens; a longer response is cut off and has no answer")
    limit: int | None = option(None, "only the first problems, for a quick look")
    seed: int = option(0, "of the sampling")
    rows: int = option(512, "responses decoded at once; lower it if memory runs out")
    chat: str = option("auto", f"prompt format: auto (from the checkpoint's files), {', '.join(CHATS)}")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps …")
    dtype: str = option("float32", "of the weights: float32, bfloat16")


SAMPLING_RULES = {
    "k": (lambda v: v >= 1, "at least 1 response per problem"),
    "temperature": (lambda v: v >= 0, "must not be negative; 0 is greedy"),
    "top_p": (lambda v: 0 < v <= 1, "a share of probability, above 0 and at most 1"),
    "max_new_tokens": (lambda v: v >= 1, "at least 1"),
    "limit": (lambda v: v >= 1, "at least 1 problem; leave it out to take all"),
    "rows": (lambda v: v >= 1, "at least 1"),
    "seed": (lambda v: v >= 0, "must be 0 or more"),
    "dtype": (lambda v: v in ("float32", "bfloat16"), "choose float32 or bfloat16"),
    "chat": (lambda v: v in ("auto", *CHATS), f"unknown, choose from auto, {', '.join(CHATS)}"),
}


def check_out(path: str) -> None:
    """Refuse, before the work and not after it, an --out that exists or has no place to be."""
    if Path(path).exists():
        raise InputError(f"--out {path}: exists already; choose another name")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); choose another name") from error


def usable_device(device: str) -> torch.device:
    """The device of this process: "auto" is its own GPU, or the CPU where there is none."""
    if device.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise InputError(f"--device {device}: each process takes its own GPU; leave the number out")
    if device in ("auto", "cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() or device == "cuda" else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from error
    return torch.device(device)


def check_checkpoint(folder: str | Path | None, chat: str, kind: type[Checkpoint], named: str) -> Text:
    """The text side of a checkpoint folder, which must be one of that kind; the weights are not read yet.

    kind: Llama or RewardModel. named: the option that gave the folder, for messages.
    """
    if folder is None:
        raise InputError(f"{named}: this task ships none; give a checkpoint folder in Hugging Face's Llama layout")
    if not Path(folder).is_dir():
        raise InputError(f"{named} {folder}: no such folder")
    text, model = Text(folder, chat), kind.on_meta(folder)
    if text.tokenizer.get_vocab_size() > model.config.vocab_size:
        raise InputError(f"{folder}: tokenizer.json has {text.tokenizer.get_vocab_size()} tokens, the model only "
                         f"{model.config.vocab_size}: they do not belong together")
    return text


def load_checkpoint(folder: str | Path | None, chat: str, device: str, dtype: str, kind: type[Loaded] = Llama,
                    named: str = "--model") -> tuple[Loaded, Text]:
    """Model and text side of a checkpoint folder, with the `--chat --device --dtype` of any script."""
    text = check_checkpoint(folder, chat, kind, named)
    return kind.from_pretrained(folder, dtype=getattr(torch, dtype), device=usable_device(device)), text


def prepare(options: SamplingOptions, task: Task, problems: str) -> tuple[list[dict], Llama, Text, dict]:
    """The problems (if none are given the task's file named so), the model and its text side, how to sample."""
    rows = read_problems(options.problems or task.file(problems), task, options.limit)
    model, text = load_checkpoint(options.model or task.file("model"), options.chat, options.device, options.dtype)
    how = {name: task.defaults[name] if getattr(options, name) is None else getattr(options, name)
           for name in ("k", "temperature", "top_p", "max_new_tokens")}
    return rows, model, text, how | {"rows": options.rows}


@dataclass
class Options(SamplingOptions):
    out: str = option("responses.jsonl", "where the responses go; an existing file is not overwritten")


def main() -> None:
    options = parse_options(Options, __doc__)
    check_options(options, SAMPLING_RULES)
    check_out(options.out)
    task = Task.load(options.task)
    problems, model, text, how = prepare(options, task, "problems")
    rows = answer_problems(model, text, task, problems, seed=[options.seed], progress="sampling", **how)
    write_jsonl(options.out, rows)
    print(show_votes(rows[0], task.name))
    print(f"{len(rows)} problems × {how['k']} responses → {options.out}")


if __name__ == "__main__":
    run_script(main)
