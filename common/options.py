"""The options of the scripts, and the loading that they share."""

import os
import re
from argparse import ArgumentParser as Parser
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from common.cli import ArgumentParser, InputError, integer, path_name, path_or_none, real
from common.files import read_json
from common.pretrained import PreTrained
from model import Llama
from scpo import METHODS
from tasks.chat import CHAT_FORMATS, ChatTokenizer
from tasks.task import Task, task_names

Model = TypeVar("Model", bound=PreTrained)
MOST_SAMPLES = 10_000  # of a problem
SELECTIONS = {  # common/selection.py
    "last": "needs no dev problems",
    "dev": "the best greedy accuracy on --dev (the paper's; reads labels)",
    "votes": "the highest vote share on --dev, without collapse to few answers (no label)",
}


def add_sampling_options(parser: Parser, min_k: int = 1) -> None:
    """The options of sample.py, eval.py and train.py. Those without a default are the task's."""
    add = parser.add_argument
    add("--task", default="toy", choices=task_names(), help="a folder of tasks/")
    add("--model", type=path_name, help="checkpoint folder of a Llama, Qwen2, Qwen3 or Mistral")
    add("--problems", type=path_name, help="JSON lines as the task's publisher ships them")
    add("--k", type=integer(min_k, MOST_SAMPLES), help="responses per problem")
    add("--temperature", type=real(lambda v: v == 0 or v >= 0.001, "must be 0 or at least 0.001"),
        help="divides the logits; 0 is greedy (paper: 0.7)")
    add("--top-p", type=real(lambda v: 0.001 <= v <= 1, "must be from 0.001 to 1"),
        help="share of probability kept at each token (paper: 0.9)")
    add("--max-new-tokens", type=integer(1), help="a longer response is cut off: it has no answer")
    add("--max-num-seqs", type=integer(1), default=512,
        help="responses decoded at once; lower it if memory runs out")
    add("--limit", type=integer(1), help="only the first problems, for a quick look")
    add("--seed", type=integer(0, 10**9), default=0, help="of all random choices")
    add("--chat", choices=["auto", *CHAT_FORMATS], default="auto",
        help="prompt format; auto reads it off the checkpoint's files")
    add("--system", help="system turn of a chat model, '' for none; if not given, the one that "
        "the checkpoint's template adds")
    add("--device", default="auto", help="auto, cpu, cuda, mps …")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")


def add_run_options(parser: Parser) -> None:
    """Which stages train.py makes of what, and how pairs are chosen."""
    add = parser.add_argument
    share = real(lambda value: 0 < value <= 1, "must be above 0 and at most 1 (0.5 is 4 of 8)")
    methods = "; ".join(map(": ".join, METHODS.items()))
    selections = "; ".join(map(": ".join, SELECTIONS.items()))
    add("--test", type=path_or_none,
        help="problems with answers for the evaluation, whose questions are also not written "
        "again; '' for none")
    add("--no-eval", action="store_true", help="skip the evaluation")
    add("--dev", type=path_or_none,
        help="problems to select an epoch by; answers are read only for --select dev")
    add("--answers", type=path_or_none,
        help="problems with answers, for gold and semi if --problems has none")
    add("--out", type=path_name,
        help="folder of the run, runs/TASK if not given; a run that is there goes on")
    add("--from", type=path_or_none,
        help="a run whose stages are taken over, as far as the options agree; or one stage of it, "
        "as runs/toy/M1/responses.jsonl, to take over no later one")
    add("--until", help="the last stage to make, as M1/responses or M2/model")
    add("--rounds", type=integer(1), default=2, help="how often M_t is made from M_{t-1}")
    add("--tau", type=share, nargs="+", help="minimum vote share of the chosen answer, per "
        "round, the last one repeated (paper, GSM8K: 0.5 0.7)")
    add("--extra", type=integer(0, MOST_SAMPLES), default=8, help="responses at the extra "
        "temperature where all k agree, to find one to reject (paper: 8)")
    add("--extra-temperature", type=real(lambda value: value >= 0.001, "must be at least 0.001"),
        default=1.2, help="of the extra responses (paper: 1.2)")
    add("--new-problems", type=integer(0), nargs="+", help="problems the model writes, per round")
    add("--writer", type=path_or_none,
        help="checkpoint folder of the model that writes them, if not M_{t-1} (paper: "
        "Llama-3 Instruct 8B)")
    add("--method", choices=METHODS, default="scpo", help=methods)
    add("--reward-model", type=path_name,
        help="checkpoint folder in ArmoRM's layout, for --method reward")
    add("--unweighted", action="store_true", help="w(x) = 1 (paper, Table 4)")
    add("--select", choices=SELECTIONS, default="last", help="which epoch's model "
        f"becomes M_t; {selections}")
    add("--dry-run", action="store_true", help="print what memory a round will take, and stop")


def add_training_options(parser: Parser) -> None:
    """How the weights are made. Those without a default are the task's."""
    add = parser.add_argument
    positive = real(lambda v: 0 < v <= 10_000, "must be above 0 and at most 10,000")
    add("--beta", type=positive,
        help="how strongly M_t is held to M_{t-1}: a larger one stays closer (paper: 0.5)")
    add("--alpha", type=real(lambda v: v >= 0, "must not be negative"),
        help="weight of the NLL term, which holds the chosen log-prob up (paper: 1)")
    add("--lr", type=positive, help="peak learning rate, cosine to 0 (paper: 5e-6 for 8B)")
    add("--warmup-ratio", type=real(lambda v: 0 <= v <= 1, "must be from 0 to 1"), default=0.05,
        help="share of the steps in which the learning rate rises")
    add("--epochs", type=integer(1), help="passes over a round's pairs (paper: up to 10)")
    add("--batch-size", type=integer(1), help="pairs per optimizer step (paper: 16)")
    add("--micro-batch-size", type=integer(1),
        help="pairs in memory at once; their gradients add up to the batch's. If not given, 8; "
        "on a CPU 2, or 4 in bf16, if the model is larger than the toy")
    add("--max-grad-norm", type=positive, default=1.0, help="gradients are clipped to it")
    add("--activation-checkpointing", action="store_true", help="compute each block again in "
        "the backward pass: a third more time, a fraction of the memory")
    add("--save-every", type=integer(1), default=200, help="optimizer steps between two "
        "checkpoints")


def parse_args(
    parser: Parser, argv: Sequence[str] | None = None, problems: str = "problems"
) -> Namespace:
    """Parse a command line with the task's defaults.

    problems: which file of the task is the default of --problems, "problems" or "test".
    """
    task_only = ArgumentParser(None, add_help=False)
    task_only.add_argument("--task", default="toy")
    name = task_only.parse_known_args(argv)[0].task
    if name in task_names():  # else parser refuses it
        defaults = Task.load(name).defaults
        parser.set_defaults(**{**defaults, "problems": defaults.get(problems)})
    args = parser.parse_args(argv)
    if getattr(args, "micro_batch_size", 0) is None:
        args.micro_batch_size = fastest_micro_batch(args.model, args.device, args.dtype)
    return args


def fastest_micro_batch(folder: str | Path | None, device: str, dtype: str) -> int:
    """Pairs at once: 8, and on a CPU 2 or, in bf16, 4 of a model that is larger than the toy.

    There each large tensor is made of new pages of memory, which costs more than a larger product
    saves (`bench/training.py --splits` measures it). The toy is fastest with 8.
    """
    path = Path(folder or "") / "config.json"
    size = read_json(path).get("hidden_size") if folder else None
    is_small = not isinstance(size, int) or size <= 256
    if is_small or usable_device(device).type != "cpu":
        return 8
    return 4 if dtype == "bfloat16" else 2


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
    option: str = "--model", system: str | None = None,
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
    tokenizer, model = ChatTokenizer(folder, chat, system), kind.on_meta(folder)
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
    system: str | None = None, kind: type[Model] = Llama, option: str = "--model",
) -> tuple[Model, ChatTokenizer]:
    """The model and the tokenizer of a checkpoint folder. Raises InputError."""
    tokenizer = check_checkpoint(folder, chat, kind, option, system)
    model = kind.from_pretrained(folder, getattr(torch, dtype), usable_device(device))
    return model, tokenizer
