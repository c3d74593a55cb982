"""What train.py looks at before any work."""

import re
from argparse import Namespace

from common.cli import InputError
from common.options import check_checkpoint
from common.reward_model import RewardModel
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
    check_checkpoint(args.model, args.chat)
    if args.writer:
        check_checkpoint(args.writer, option="--writer")
    if args.method == "reward":
        check_checkpoint(args.reward_model, kind=RewardModel, option="--reward-model")
    if args.method in ("gold", "semi"):
        problems = read_problems(args.problems, task, args.limit)
        read_golds(problems, task, args.answers, f"--method {args.method}")
    if args.select == "dev":
        read_golds(read_problems(args.dev, task, args.limit), task, None, "--select dev")


UNTIL = re.compile(r"M0/eval|M[1-9]\d*/(problems|responses|rewards|pairs|model|eval)")
