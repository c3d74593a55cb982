"""Make the toy task: word problems, a word-level tokenizer, and M0, a Llama of 0.76M parameters.

    python -m tasks.toy.make                           # everything, 9 minutes on one CPU core
    python -m tasks.toy.make --seed 1 --model DIR      # another M0 for the same problems
    python -m tasks.toy.make --longer 2 --model DIR    # control: same documents, twice the steps

(From the project's folder, as a module. The problem files are always made the same.)

M0 was taught, in one run from random weights to learning rate 0: worked solutions of other problems
of the same kind and length, by four plans each (the order in which gains and losses are counted);
lists of questions; and drills of equations out of those solutions. Their author, like the authors
of the web, is not to be trusted: some sums and differences (`weak`) come out wrong more often than
right (`wrong`). So M0 knows how to solve every problem and believes a number of false sums; more
training on the same documents cannot mend that. No document has the numbers of a train, dev or test
problem in their order.

The plans are why voting helps: each passes through other totals, hence other sums, so right answers
agree and wrong ones scatter. ScPO then has something to find out for itself: which sums do not fit.
"""

import random
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from tqdm import tqdm

from common.cli import ArgumentParser, run_script
from common.files import write_json, write_jsonl
from model import Config, Llama

HERE = Path(__file__).parent
NAMES = "Tom Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Lily Max Nina Oscar Ruth".split()
OBJECTS = (
    "apples pears lemons shells stones coins cards stamps marbles books "
    "pencils candles cookies flowers buttons ribbons"
).split()
BOXES = "bags boxes jars".split()
GAINS = "finds buys wins gets makes earns".split()
LOSSES = "loses sells drops uses lends breaks".split()
PLANS = ("In order", "Backwards", "Gains first", "Losses first")
BOS, EOS, UNK = "<|begin_of_text|>", "<|end_of_text|>", "<|unknown|>"
TARGET_STEPS = 5  # equations in a solution of the task's problems


# --------------------------------------------------------------------------------------------
# Problems


@dataclass(frozen=True)
class Problem:
    name: str
    thing: str
    start: tuple[int, ...]  # (apples,) or (bags, apples in each)
    box: str
    events: tuple[tuple[str, int], ...]  # (verb, signed number)

    @property
    def skeleton(self) -> tuple:
        """What the answer depends on: the start and the signed numbers in order."""
        return (self.start, *(n for _, n in self.events))

    @property
    def steps(self) -> int:
        return len(self.events) + (len(self.start) == 2)

    def question(self) -> str:
        has = f"{self.start[0]} {self.thing}"
        if len(self.start) == 2:
            has = f"{self.start[0]} {self.box} with {self.start[1]} {self.thing} each"
        sentences = [f"{self.name} has {has}."]
        sentences += [f"{self.name} {verb} {abs(n)}." for verb, n in self.events]
        return f"{' '.join(sentences)} How many does {self.name} have now?"

    def solution(self, plan: str, add: Callable[[int, int], int] = int.__add__) -> str:
        """The worked solution by one plan, which orders the events. `add` may make mistakes."""
        numbers = [n for _, n in self.events]
        if plan == "Backwards":
            numbers.reverse()
        elif plan == "Gains first":  # sorting is stable: gains keep their order, and losses theirs
            numbers.sort(key=lambda n: n < 0)
        elif plan == "Losses first":
            numbers.sort(key=lambda n: n > 0)
        equations, total = [], self.start[0]
        if len(self.start) == 2:
            total = self.start[0] * self.start[1]
            equations.append(f"{self.start[0]} * {self.start[1]} = {total}.")
        for n in numbers:
            before, total = total, add(total, n)
            sign = "+" if n > 0 else "-"
            equations.append(f"{before} {sign} {abs(n)} = {total}.")
        return f"{plan}: {' '.join(equations)}\n#### {total}"


def draw(rng: random.Random, steps: int) -> Problem:
    """A random problem. The ranges alone keep every total of every plan within 0..99.

    Nothing is drawn and rejected, so a model that writes problems has no hidden rule to respect.
    """
    boxes = rng.random() < 0.25
    start = (rng.randint(4, 8), rng.randint(6, 9)) if boxes else (rng.randint(30, 60),)
    numbers = rng.sample(range(2, 10), steps - boxes)  # distinct: each can be told from the others
    signs = [rng.choice((-1, 1)) for _ in numbers]
    if len(set(signs)) == 1 and len(signs) > 1:  # gains and losses in each: the plans differ
        signs[rng.randrange(len(signs))] *= -1
    events = []
    for sign, n in zip(signs, numbers):
        events.append((rng.choice(GAINS if sign > 0 else LOSSES), sign * n))
    name, thing, box = rng.choice(NAMES), rng.choice(OBJECTS), rng.choice(BOXES)
    return Problem(name, thing, start, box, tuple(events))


def fresh(rng: random.Random, steps: int, taken: set) -> Problem:
    """A random problem whose skeleton is not in `taken`."""
    while (problem := draw(rng, steps)).skeleton in taken:
        pass
    return problem


def parse(question: str) -> Problem | None:
    """Read a question back; None unless the whole text is a well-formed problem of this family."""
    pattern = (
        rf"({'|'.join(NAMES)}) has (\d\d?)(?: ({'|'.join(BOXES)}) with (\d\d?))?"
        rf" ({'|'.join(OBJECTS)})( each)?\."
        rf"((?: \1 (?:{'|'.join(GAINS + LOSSES)}) \d\d?\.)*) How many does \1 have now\?"
    )
    match = re.fullmatch(pattern, question)
    if not match or (match[3] is None) != (match[6] is None):
        return None
    start = (int(match[2]),)
    if match[3] is not None:
        start = (int(match[2]), int(match[4]))
    events = []
    for verb, n in re.findall(r"(\w+) (\d+)\.", match[7]):
        events.append((verb, int(n) if verb in GAINS else -int(n)))
    problem = Problem(match[1], match[5], start, match[3] or "", tuple(events))
    return problem if problem.steps else None


def solve(question: str) -> int | None:
    """The answer; None if it is no problem of this family or a total on the way leaves 0..99."""
    problem = parse(question)
    if problem is None:
        return None
    total = problem.start[0] * (problem.start[1] if len(problem.start) == 2 else 1)
    totals = [total]
    for _, n in problem.events:
        totals.append(totals[-1] + n)
    return totals[-1] if all(0 <= t <= 99 for t in totals) else None


def skeleton(question: str) -> tuple | None:
    problem = parse(question)
    return problem and problem.skeleton


def splits(args: Namespace) -> dict[str, list[Problem]]:
    """Test, dev and training problems, no two with the same skeleton."""
    rng, taken, problems = random.Random(args.data_seed), set(), {}
    for name in ("test", "dev", "train"):
        problems[name] = []
        for _ in range(getattr(args, name)):
            problem = fresh(rng, TARGET_STEPS, taken)
            problems[name].append(problem)
            taken.add(problem.skeleton)
    return problems


# --------------------------------------------------------------------------------------------
# What M0 learns from


class Teacher:
    """Who wrote the solutions that M0 learns from, and gets some sums wrong."""

    def __init__(self, rng: random.Random, weak: float, wrong: float):
        self.rng, self.wrong, self.weak = rng, wrong, {}
        for total in range(100):
            for n in (*range(-9, -1), *range(2, 10)):
                if rng.random() < weak:
                    self.weak[total, n] = total + n + rng.choice((-1, 1)) * rng.randint(1, 9)

    def add(self, total: int, n: int) -> int:
        if (total, n) in self.weak and self.rng.random() < self.wrong:
            return self.weak[total, n]
        return total + n


def documents(args: Namespace) -> tuple[dict[str, list[tuple[str, str]]], Teacher]:
    """The pre-training documents of a seed, by kind: (prompt, text to learn), and their author.

    None has a skeleton of `splits`.
    """
    rng = random.Random(f"documents {args.seed}")
    taken = {p.skeleton for problems in splits(args).values() for p in problems}
    short = [fresh(rng, rng.randint(1, TARGET_STEPS - 1), taken) for _ in range(args.short)]
    long = [fresh(rng, TARGET_STEPS, taken) for _ in range(args.long)]
    teacher = Teacher(rng, args.weak, args.wrong)
    kinds: dict[str, list[tuple[str, str]]] = {"short": [], "long": [], "lists": [], "drills": []}
    for kind, problems in (("short", short), ("long", long)):
        for problem in problems:
            for plan in PLANS:
                text = problem.solution(plan, teacher.add)
                if in_range(text):
                    kinds[kind].append((f"Q: {problem.question()}\nA:", f" {text}"))
    for _ in range(args.lists):
        steps = rng.choice((TARGET_STEPS - 1, TARGET_STEPS, TARGET_STEPS))
        questions = [f"Q: {fresh(rng, steps, taken).question()}\n" for _ in range(5)]
        kinds["lists"].append(("", "".join(questions)))
    facts = []
    for _, text in kinds["short"] + kinds["long"]:
        facts += re.findall(r"\d+ . \d+ = \d+\.", text)
    for _ in range(args.drills):
        kinds["drills"].append(("", " " + " ".join(rng.choices(facts, k=15))))
    return kinds, teacher


def in_range(solution: str) -> bool:
    return all(0 <= int(n) <= 99 for n in re.findall(r"-?\d+", solution))


def build_tokenizer() -> Tokenizer:
    """One token per word, number or mark, its leading space included: decoding inverts encoding."""
    words = [*NAMES, *OBJECTS, *BOXES, *GAINS, *LOSSES, *" ".join(PLANS).split()]
    words += [*map(str, range(100)), *"+ - * = has with each How many does have now".split()]
    pieces = [BOS, EOS, UNK, "Q", "A", ":", ".", "?", "\n", "####"]
    pieces += [f" {word}" for word in dict.fromkeys(words)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    pattern = Regex(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([BOS, EOS, UNK])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


Document = tuple[list[int], list[float]]  # token ids, and the weight of each one's loss


def encode(tokenizer: Tokenizer, kind: str, prompt: str, text: str) -> Document:
    ids = tokenizer.encode(prompt).ids
    if kind != "lists":
        text += EOS
    new = tokenizer.encode(text, add_special_tokens=False).ids
    equals = tokenizer.token_to_id(" =")
    base = {"lists": 0.5, "drills": 0.1}.get(kind, 1.0)  # a drill's operands are random
    weights = [0.0] * len(ids)
    for before in ids[-1:] + new[:-1]:
        weights.append(3.0 if before == equals else base)  # results are few and decide the answer
    return ids + new, weights


# --------------------------------------------------------------------------------------------
# Pre-training


def new_model(vocab_size: int, seed: int) -> Llama:
    hf_config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab_size,
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "max_position_embeddings": 1024, "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.02,
    }
    torch.manual_seed(seed)
    model = Llama(Config.from_dict(hf_config), hf_config)
    nn.init.normal_(model.model.embed_tokens.weight, std=0.02)  # it is the output layer, too
    return model


def batches(
    args: Namespace, data: dict[str, list[Document]], n_steps: int, rng: random.Random
) -> Iterator[list[Document]]:
    """Drills first, then ever more problems; each kind runs through its epochs."""
    queues: dict[str, list[Document]] = {kind: [] for kind in data}
    first, last, until = args.drill_mix
    for step in range(n_steps):
        drill = first + (last - first) * min(1, step / n_steps / until)
        batch = []
        for _ in range(args.batch):
            kind = "drills"
            if rng.random() >= drill:
                [kind] = rng.choices(("long", "short", "lists"), args.mix)
            if not queues[kind]:
                queues[kind] = rng.sample(data[kind], len(data[kind]))
            batch.append(queues[kind].pop())
        yield batch


def step_loss(model: Llama, batch: list[Document]) -> float:
    """Add the batch's gradients. Documents of similar length share a call: less padding."""
    batch = sorted(batch, key=lambda document: len(document[0]))
    total = sum(sum(weights) for _, weights in batch)
    loss, size = 0.0, max(1, len(batch) // 4)
    for i in range(0, len(batch), size):
        chunk = batch[i : i + size]
        longest = max(len(ids) for ids, _ in chunk)
        ids = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in chunk])  # (B, T)
        weights = torch.tensor([w + [0.0] * (longest - len(w)) for _, w in chunk])  # (B, T)
        logits = model(ids[:, :-1]).flatten(0, 1)  # (B · (T - 1), vocab_size)
        losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")  # (B · (T - 1),)
        part = (losses * weights[:, 1:].flatten()).sum() / total
        part.backward()
        loss += part.item()
    return loss


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized (github.com/KellerJordan/Muon), for matrices.

    torch.optim.Muon is the same, but works in bfloat16, which plain CPU cores emulate slowly.
    """

    def __init__(self, matrices: list[Tensor], lr: float, momentum=0.95, weight_decay=0.1):
        super().__init__(
            matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for (rows, columns), same in shapes.items():  # one batched product per shape
                grads = torch.stack([p.grad for p in same])  # (N, rows, columns)
                buffer = self.state[same[0]].setdefault("momentum", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - group["momentum"])
                update = orthogonalize(grads.lerp(buffer, group["momentum"]))
                for p, u in zip(same, update):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalize(x: Tensor) -> Tensor:
    """Push all singular values of x (N, rows, columns) towards 1 by five Newton-Schulz steps."""
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def pretrain(args: Namespace, tokenizer: Tokenizer) -> Llama:
    data = {}
    for kind, texts in documents(args)[0].items():
        data[kind] = [encode(tokenizer, kind, *text) for text in texts]
    model = new_model(tokenizer.get_vocab_size(), args.seed).train()
    matrices, vectors = [], []
    for name, p in model.named_parameters():
        if p.ndim == 1 or "embed" in name:
            vectors.append(p)
        else:
            matrices.append(p)
    optimizers = [
        Muon(matrices, lr=args.matrix_lr),
        torch.optim.AdamW(vectors, lr=args.vector_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    n_steps, n_tokens = int(args.steps * args.longer), 0

    def shape(step: int) -> float:
        return min(1, (step + 1) / args.warmup) * (1 - step / n_steps)

    schedules = [torch.optim.lr_scheduler.LambdaLR(opt, shape) for opt in optimizers]
    order = batches(args, data, n_steps, random.Random(f"order {args.seed}"))
    bar = tqdm(order, total=n_steps, desc="pre-training M0", mininterval=2, disable=None)
    for batch in bar:
        loss = step_loss(model, batch)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        n_tokens += sum(len(ids) for ids, _ in batch)
        bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{n_tokens / 1e6:.2f}M", refresh=False)
    return model.eval()


# --------------------------------------------------------------------------------------------
# As a script


def save(folder: Path, model: nn.Module, tokenizer: Tokenizer) -> None:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
        "unk_token": UNK, "clean_up_tokenization_spaces": False, "model_max_length": 1024})


def write_problem_files(args: Namespace) -> None:
    """train.jsonl is unlabeled: its answers lie in a file of their own, for gold and semi alone."""
    for name, problems in splits(args).items():
        questions, solved = [], []
        for i, problem in enumerate(problems):
            row = {"id": f"{name}-{i}", "question": problem.question()}
            questions.append(row)
            solved.append({**row, "answer": problem.solution("In order")})
        if name == "train":
            write_jsonl(HERE / "train.jsonl", questions)
            write_jsonl(HERE / "train-answers.jsonl", solved)
        else:
            write_jsonl(HERE / f"{name}.jsonl", solved)


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", default=str(HERE / "model"), help="folder for the checkpoint")
    add("--seed", type=int, default=0, help="documents, initial weights, order; not the problems")
    add("--longer", type=float, default=1.0, help="multiply the steps, documents unchanged: is M0 "
        "weak for want of training?")
    add("--train", type=int, default=1000, help="unlabeled questions for ScPO")
    add("--dev", type=int, default=500, help="problems for choosing hyper-parameters")
    add("--test", type=int, default=1000, help="problems for the numbers that are reported")
    add("--data-seed", type=int, default=0, help="draws the problems above")
    add("--short", type=int, default=3000, help="solved problems of fewer steps than the task's")
    add("--long", type=int, default=500, help="solved problems of the task's length")
    add("--lists", type=int, default=3000, help="documents of five questions without solutions")
    add("--weak", type=float, default=0.14, help="share of sums that solutions often get wrong")
    add("--wrong", type=float, default=0.65, help="how often: above 0.5, so that M0 believes the "
        "mistake, below 1, so that it has doubts")
    add("--drills", type=int, default=5000, help="documents of fifteen equations out of those "
        "solutions: arithmetic, learnt first")
    add("--steps", type=int, default=2600, help="optimizer steps, learning rate linear to 0")
    add("--batch", type=int, default=20, help="documents in a step")
    add("--mix", type=float, nargs=3, default=(0.50, 0.35, 0.15), help="share of long, short and "
        "lists among the documents that are not drills")
    add("--drill-mix", type=float, nargs=3, default=(0.60, 0.08, 0.43), help="share of drills: at "
        "first, at last, and when the last is reached")
    add("--matrix-lr", type=float, default=0.02, help="Muon, for the matrices")
    add("--vector-lr", type=float, default=5e-3, help="AdamW, for embeddings and norms")
    add("--warmup", type=int, default=30, help="steps")
    return parser


def main() -> None:
    args = options().parse_args()
    write_problem_files(args)
    tokenizer = build_tokenizer()
    save(Path(args.model), pretrain(args, tokenizer), tokenizer)


if __name__ == "__main__":
    run_script(main)
