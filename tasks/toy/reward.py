"""Make the toy task's reward model: a judge that learnt on easier problems than it is asked about.

    python -m tasks.toy.reward                         # tasks/toy/reward, 2 minutes on one CPU core

(From the project's folder, as a module.) ArmoRM, the judge of the paper, knows GSM8K and MATH from
its training and has never seen ZebraLogic. This one has seen problems of one and two steps and is
asked about five. M0 answers each easy problem 8 times, and where some answers are right and some
wrong (labels are used here, as in the training of any reward model) a Bradley-Terry loss pulls the
score of a right response above that of a wrong one:

    L = - log σ( r(x, y_right) - r(x, y_wrong) )

M0's own body is trained along with a linear head of one objective. The folder has ArmoRM's layout,
so train.py reads both by the same code.
"""

import random
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.cli import ArgumentParser, run_script
from common.options import load_checkpoint
from common.packing import collate
from common.reward_model import RewardModel, one_turn, reward_responses
from model import Config, Llama
from sample import SamplingParams, answer_problems
from tasks.chat import ChatTokenizer
from tasks.task import Task
from tasks.toy import make
from vote import response_answers


def easy_problems(args: Namespace) -> list[dict]:
    """Different easy problems with their answers, the held-out ones first."""
    rng, taken, rows = random.Random(f"reward {args.seed}"), set(), []
    for i in range(args.held_out + args.problems):
        problem = make.fresh(rng, rng.choice(args.steps), taken)
        if i < args.held_out:
            taken.add(problem.skeleton)
        question = problem.question()
        rows.append({"id": i, "question": question, "answer": str(make.solve(question))})
    return rows


def labelled_pairs(row: dict, gold: str, rng: random.Random) -> list[tuple[int, int]]:
    """(right, wrong) responses: as many as there are of the rarer kind, each used once."""
    right, wrong = [], []
    for i, answer in enumerate(response_answers(row, "toy")):
        (right if answer == gold else wrong).append(i)
    return list(zip(rng.sample(right, len(right)), rng.sample(wrong, len(wrong))))


def new_reward_model(language_model: Llama, seed: int) -> RewardModel:
    hf_config = {
        **language_model.hf_config, "architectures": ["LlamaForRewardModelWithGating"],
        "num_objectives": 1, "gating_hidden_dim": 1, "gating_n_hidden": 1,
        "gating_temperature": 10}
    torch.manual_seed(seed)
    model = RewardModel(Config.from_dict(hf_config), hf_config)
    model.model.load_state_dict(language_model.model.state_dict())
    torch.nn.init.zeros_(model.regression_layer.weight)
    return model


def train(model: RewardModel, pairs: list[tuple], args: Namespace, rng: random.Random) -> None:
    """pairs: the (prompt, response) tokens of a right and of a wrong response."""
    order = []
    for _ in range(args.epochs):
        order += rng.sample(range(len(pairs)), len(pairs))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    n_steps = len(order) // args.batch
    for step in tqdm(range(n_steps), f"{len(pairs)} pairs", disable=None):
        batch = [pairs[i] for i in order[step * args.batch : (step + 1) * args.batch]]
        rows = [pair[0] for pair in batch] + [pair[1] for pair in batch]
        tokens, _, response_mask = collate(rows)
        closes = response_mask.int().argmax(1) - 1  # (2B,)
        ends = closes + response_mask.sum(1)  # (2B,)
        right, wrong = model(tokens, closes, ends).chunk(2)  # (B,) each
        loss = -F.logsigmoid(right - wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = args.lr * (1 - step / n_steps)
        optimizer.step()
    model.eval()


def encode(tokenizer: ChatTokenizer, row: dict, i: int) -> tuple[list[int], list[int]]:
    prompt, response, _ = one_turn(tokenizer, row["question"], row["responses"][i])
    return prompt, response


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--m0", default=str(make.HERE / "model"), help="whose responses it learns to judge, and "
        "whose body it starts from")
    add("--out", default=str(make.HERE / "reward"), help="folder for the checkpoint")
    add("--problems", type=int, default=4000, help="easy problems with answers")
    add("--held-out", type=int, default=500, help="easy problems that measure it")
    add("--steps", type=int, nargs="+", default=(1, 2), help="equations in an easy problem")
    add("--k", type=int, default=8, help="responses to each")
    add("--epochs", type=int, default=4, help="passes over the pairs")
    add("--batch", type=int, default=32, help="pairs in a step")
    add("--lr", type=float, default=3e-4, help="AdamW, linear to 0")
    add("--seed", type=int, default=0, help="of problems, samples and order")
    return parser


def main() -> None:
    args = options().parse_args()
    language_model, tokenizer = load_checkpoint(args.m0)
    problems = easy_problems(args)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=96)
    rows = answer_problems(language_model, tokenizer, Task.load("toy"), problems, args.k, params,
                           seed=[args.seed], desc="answering easy problems")
    rng = random.Random(f"pairs {args.seed}")
    found = [labelled_pairs(row, problem["answer"], rng) for row, problem in zip(rows, problems)]
    pairs = []
    for row, chosen in zip(rows[args.held_out :], found[args.held_out :]):
        for right, wrong in chosen:
            pairs.append((encode(tokenizer, row, right), encode(tokenizer, row, wrong)))
    model = new_reward_model(language_model, args.seed)
    train(model, pairs, args, rng)
    scores = reward_responses(model, tokenizer, rows[: args.held_out], 512, "held out")
    judged = []
    for row_scores, chosen in zip(scores, found):
        judged += [row_scores[right] > row_scores[wrong] for right, wrong in chosen]
    share = 100 * sum(judged) / len(judged)
    print(f"held-out easy pairs ordered right: {share:.1f} % of {len(judged)}")
    make.save(Path(args.out), model, make.build_tokenizer())


if __name__ == "__main__":
    run_script(main)
