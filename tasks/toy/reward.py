"""Make the miniature's reward model: a judge that learnt on easier problems than those it will be asked about.

    python -m tasks.toy.reward                         # tasks/toy/reward, 2 minutes on one CPU core

(From the project's folder, as a module.) ArmoRM, the judge of the paper, knows GSM8K and MATH from its training and has
never seen ZebraLogic. This one has seen problems of one and two steps and is asked about five: M0 answers each easy
problem 8 times, and where some answers are right and some wrong (labels are used here, as in the training of any reward
model) a Bradley-Terry loss pulls the score of a right response above that of a wrong one:

    L = - log σ( r(x, y_right) - r(x, y_wrong) )

M0's own body is trained along with a linear head of one objective. The folder has ArmoRM's layout, so train.py and
eval.py read both by the same code.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from eval import RewardModel, reward_responses
from model import Config
from sample import Task, answer_problems, load_checkpoint
from scpo import collate
from tasks.toy import make
from vote import option, parse_options, response_answers, run_script


@dataclass
class Options:
    m0: str = option(str(make.HERE / "model"), "whose responses it learns to judge, and whose body it starts from")
    out: str = option(str(make.HERE / "reward"), "folder for the checkpoint")
    problems: int = option(4000, "easy problems with answers")
    held_out: int = option(500, "easy problems that measure it, without skeletons of the others")
    steps: tuple[int, ...] = option((1, 2), "equations in an easy problem's solution; the task has 5")
    k: int = option(8, "responses to each")
    epochs: int = option(4, "passes over the pairs")
    batch: int = option(32, "pairs in a step")
    lr: float = option(3e-4, "AdamW, linear to 0")
    seed: int = option(0, "of problems, samples and order")


def easy_problems(o: Options) -> list[dict]:
    """Different easy problems with their answers, the held-out ones first."""
    rng, taken = random.Random(f"reward {o.seed}"), set()
    rows = []
    for i in range(o.held_out + o.problems):
        problem = make.fresh(rng, rng.choice(o.steps), taken)
        if i < o.held_out:
            taken.add(problem.skeleton)
        rows.append({"id": i, "question": problem.question(), "answer": str(make.solve(problem.question()))})
    return rows


def labelled_pairs(row: dict, gold: str, rng: random.Random) -> list[tuple[int, int]]:
    """(right, wrong) responses to one problem: as many as there are of the rarer kind, each used once."""
    right = [answer == gold for answer in response_answers(row, "toy")]
    good, bad = ([i for i, r in enumerate(right) if r == kind] for kind in (True, False))
    return list(zip(rng.sample(good, len(good)), rng.sample(bad, len(bad))))


def main() -> None:
    o = parse_options(Options, __doc__)
    language_model, text = load_checkpoint(o.m0, "auto", "cpu", "float32")
    problems = easy_problems(o)
    rows = answer_problems(language_model, text, Task.load("toy"), problems, o.k, temperature=1.0, top_p=1.0,
                           max_new_tokens=96, seed=[o.seed], progress="answering easy problems")
    raw = {**language_model.raw_config, "architectures": ["LlamaForRewardModelWithGating"], "num_objectives": 1,
           "gating_hidden_dim": 1, "gating_n_hidden": 1, "gating_temperature": 10}
    torch.manual_seed(o.seed)
    model = RewardModel(Config.from_dict(raw), raw)
    model.model.load_state_dict(language_model.model.state_dict())
    torch.nn.init.zeros_(model.regression_layer.weight)
    rng = random.Random(f"pairs {o.seed}")
    pairs = [[labelled_pairs(row, p["answer"], rng), row] for row, p in zip(rows, problems)]
    encode = lambda row, i: text.judged(row["question"], row["responses"][i])[:2]
    train = [(encode(row, a), encode(row, b)) for found, row in pairs[o.held_out :] for a, b in found]
    order = [i for _ in range(o.epochs) for i in rng.sample(range(len(train)), len(train))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=o.lr, weight_decay=0.0)
    steps = len(order) // o.batch
    for step in tqdm(range(steps), f"{len(train)} pairs"):
        batch = [train[i] for i in order[step * o.batch : (step + 1) * o.batch]]
        tokens, targets = collate([right for right, _ in batch] + [wrong for _, wrong in batch])  # (2B, T)
        closes = targets.int().argmax(1) - 1
        ends = closes + targets.sum(1)
        right, wrong = model(tokens, closes, ends).chunk(2)
        loss = -F.logsigmoid(right - wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = o.lr * (1 - step / steps)
        optimizer.step()
    model.eval()
    scores = reward_responses(model, text, rows[: o.held_out], 512, "held out")
    judged = [s[a] > s[b] for s, (found, _) in zip(scores, pairs) for a, b in found]
    print(f"held-out easy pairs ordered right: {100 * sum(judged) / len(judged):.1f} % of {len(judged)}")
    make.save(Path(o.out), model, make.build_tokenizer())


if __name__ == "__main__":
    run_script(main)
