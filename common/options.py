"""The options and the loading that sample.py, eval.py and train.py share."""

import os
import re
from argparse import ArgumentParser as Parser
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from common.cli import ArgumentParser, InputError, file_name, integer, real
from model import Llama, PreTrained
from tasks.chat import CHAT_TEMPLATES, ChatTokenizer
from tasks.task import Task, task_names

Model = TypeVar("Model", bound=PreTrained)


def add_sampling_options(parser: Parser, least_k: int = 1) -> None:
    """The options of sample.py, eval.py and train.py. Those without a default are the task's."""
    add = parser.add_argument
    add("--task", default="toy", choices=task_names(), help="a folder of tasks/")
    add("--model", type=file_name, help="checkpoint folder in Hugging Face's Llama layout")
    add("--problems", type=file_name, help="JSON lines as the task's publisher ships them")
    add("--k", type=integer(least_k), help="responses per problem")
    add("--temperature", type=real(lambda v: v == 0 or v >= 0.001, "must be 0 or at least 0.001"),
        help="divides the logits; 0 is greedy (paper: 0.7)")
    add("--top-p", type=real(lambda v: 0.001 <= v <= 1, "must be from 0.001 to 1"),
        help="share of probability kept at each token (paper: 0.9)")
    add("--max-new-tokens", type=integer(1), help="a longer response is cut off: it has no answer")
    add("--max-num-seqs", "--rows", type=integer(1), default=512,
        help="responses decoded at once; lower it if memory runs out")
    add("--limit", type=integer(1), help="only the first problems, for a quick look")
    add("--seed", type=integer(0), default=0, help="of the sampling")
    add("--chat", choices=["auto", *CHAT_TEMPLATES], default="auto",
        help="prompt format; auto reads it off the checkpoint's files")
    add("--device", default="auto", help="auto, cpu, cuda, mps …")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")


def parse_args(
    parser: Parser, argv: Sequence[str] | None = None, problems: str = "problems"
) -> Namespace:
    """Parse a command line, with the task's defaults; --problems is the file that it calls so."""
    task_only = ArgumentParser(None, add_help=False)
    task_only.add_argument("--task", default="toy")
    name = task_only.parse_known_args(argv)[0].task
    if name in task_names():  # else parser refuses it
        defaults = Task.load(name).defaults
        parser.set_defaults(**{**defaults, "problems": defaults.get(problems)})
    return parser.parse_args(argv)


def usable_device(name: str) -> torch.device:
    """The device of this process: "auto" is its own GPU, or the CPU where there is none."""
    if name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        advice = "each process takes its own GPU; leave the number out"
        raise InputError(f"--device {name}: {advice}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()  # one that holds no numbers, as meta, is of no use
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"--device {name}: not usable here ({reason})") from error
    return torch.device(name)


def check_checkpoint(
    folder: str | Path | None, chat: str = "auto", kind: type[PreTrained] = Llama,
    option: str = "--model",
) -> ChatTokenizer:
    """The tokenizer of a checkpoint folder, which must be of that kind. Reads no weights yet.

    option: what gave the folder, for the messages of InputError.
    """
    if folder is None:
        advice = "this task ships none; give a checkpoint folder in Hugging Face's Llama layout"
        raise InputError(f"{option}: {advice}")
    if not Path(folder).is_dir():
        advice = ""
        if re.fullmatch(r"[\w-]+/[\w.-]+", str(folder)):
            advice = f"; to get it from Hugging Face: hf download {folder} --local-dir DIR"
        raise InputError(f"{option} {folder}: no such folder{advice}")
    tokenizer, model = ChatTokenizer(folder, chat), kind.on_meta(folder)
    prompt = tokenizer.encode_prompt("x")
    if not prompt:
        raise InputError(f"{folder}/tokenizer.json: makes no token of 'x'; copy the original")
    for file, last in (
        ("tokenizer.json", max([*tokenizer.tokenizer.get_vocab().values(), *prompt])),
        ("an eos_token_id", tokenizer.stop_ids[-1]),
    ):
        if last >= model.config.vocab_size:
            known = f"the model knows only {model.config.vocab_size}: they do not belong together"
            raise InputError(f"{folder}: {file} names token {last}, {known}")
    if prompt[-1] in tokenizer.stop_ids:
        advice = "ends every prompt with EOS; take that out of its post_processor"
        raise InputError(f"{folder}/tokenizer.json: {advice}")
    return tokenizer


def load_checkpoint(
    folder: str | Path | None, chat: str = "auto", device: str = "cpu", dtype: str = "float32",
    kind: type[Model] = Llama, option: str = "--model",
) -> tuple[Model, ChatTokenizer]:
    """The model and the tokenizer of a checkpoint folder. Raises InputError."""
    tokenizer = check_checkpoint(folder, chat, kind, option)
    model = kind.from_pretrained(folder, getattr(torch, dtype), usable_device(device))
    return model, tokenizer
