"""What the scripts look at before any work."""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from common.cli import InputError
from common.files import read_lines
from common.options import check_checkpoint
from common.reward_model import RewardModel
from model import Llama
from tasks.task import Task, read_golds, read_problems


def check_inputs(args: Namespace) -> None:
    """Look at every file that a stage will need: a mistake shows now, not after hours."""
    task = Task.load(args.task)
    if args.temperature == 0:
        raise InputError("--temperature 0: k greedy responses would all be the same")
    if args.until and not UNTIL.fullmatch(args.until):
        raise InputError(f"--until {args.until}: give a stage as M1/responses or M2/model")
    if args.select != "last" and not args.dev:
        advice = "needs --dev, problems that are neither trained nor tested on"
        raise InputError(f"--select {args.select}: {advice}")
    if args.method == "reward" and args.reward_model is None:
        advice = "needs --reward-model, a checkpoint folder in ArmoRM's layout"
        raise InputError(f"--method reward: {advice}")
    for path in (args.problems, args.test or args.problems, args.dev or args.problems):
        read_problems(path, task)
    check_checkpoint(args.model, args.chat, system=args.system)
    if args.writer:
        check_checkpoint(args.writer, option="--writer")
    if args.method == "reward":
        check_checkpoint(args.reward_model, kind=RewardModel, option="--reward-model")
    if args.method in ("gold", "semi"):
        problems = read_problems(args.problems, task, args.limit)
        read_golds(problems, task, args.answers, f"--method {args.method}")
    if args.select == "dev":
        read_golds(read_problems(args.dev, task, args.limit), task, None, "--select dev")
    if args.test and not args.no_eval:
        check_lengths(args.test, args.model, task, args)
    if args.select != "last":
        check_lengths(args.dev, args.model, task, args)


def check_lengths(path: str, folder: str | Path, task: Task, args: Namespace) -> None:
    """Raises InputError, naming its line, for a problem that is too long for the model."""
    fits = fits_context(folder, task, args)
    for number, problem in enumerate(read_problems(path, task, args.limit)):
        if not fits(problem):
            lines = [n for n, line in enumerate(read_lines(path), 1) if line.strip()]
            raise InputError(f"{path}, line {lines[number]}: problem {problem['id']} and "
                             f"--max-new-tokens {args.max_new_tokens} exceed the context of "
                             f"{folder}; lower --max-new-tokens or delete the line")


def fits_context(folder: str | Path, task: Task, args: Namespace) -> Callable[[dict], bool]:
    """Whether a problem and a response of --max-new-tokens fit into the model's context."""
    tokenizer = check_checkpoint(folder, args.chat, system=args.system)
    longest = Llama.on_meta(folder).context_length - args.max_new_tokens

    def fits(problem: dict) -> bool:
        return len(tokenizer.encode_prompt(tokenizer.prompt_for(task, problem))) <= longest

    return fits


UNTIL = re.compile(r"M0/eval|M[1-9]\d*/(problems|responses|rewards|pairs|model|eval)")
