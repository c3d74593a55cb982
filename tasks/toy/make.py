"""Make the miniature: word problems, a word-level tokenizer, and M0, a Llama of 0.76M parameters that knows half.

    python -m tasks.toy.make                           # everything, 9 minutes on one CPU core
    python -m tasks.toy.make --seed 1 --model DIR      # another M0 for the same train, dev and test problems
    python -m tasks.toy.make --longer 2 --model DIR    # control: the same documents, twice as many steps

(From the project's folder, as a module. The three problem files are written anew each time, always the same.)

M0 was taught, in one run from random weights to learning rate 0: worked solutions of other problems of the same kind
and length, by four plans each (the order in which gains and losses are counted); lists of questions; and drills of
equations out of those solutions. Their author, like the authors of the web, is not to be trusted: some sums and
differences (`weak`) come out wrong more often than right (`wrong`). So M0 knows how to solve every problem and believes
a number of false sums; more training on the same documents cannot mend that. No document has the numbers of a train,
dev or test problem in their order. The plans are why voting helps: each passes through other totals, hence other sums,
so right answers agree and wrong ones scatter. ScPO then has something to find out for itself: which sums do not fit.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tqdm import tqdm

from model import Config, Llama
from vote import option, parse_options, run_script, write_jsonl, write_text

HERE = Path(__file__).parent


@dataclass
class Options:
    model: str = option(str(HERE / "model"), "folder for the checkpoint")
    seed: int = option(0, "pre-training: documents, initial weights, order; the problem files do not depend on it")
    longer: float = option(1.0, "multiply the number of steps, documents unchanged: is M0 weak for want of training?")

    train: int = option(1000, "unlabelled questions for ScPO")
    dev: int = option(500, "problems for choosing hyper-parameters")
    test: int = option(1000, "problems for the numbers that are reported")
    target_steps: int = option(5, "equations in a solution of the problems above")
    data_seed: int = option(0, "draws the problems above")

    short: int = option(3000, "solved problems of 1 step up to one below the target")
    long: int = option(500, "solved problems of the target length")
    lists: int = option(3000, "documents of five questions without solutions: how to write a new problem")
    weak: float = option(.14, "share of sums and differences that those solutions often get wrong")
    wrong: float = option(.65, "how often they do: above 0.5, so that M0 believes the mistake, below 1: it has doubts")
    drills: int = option(5000, "documents of fifteen equations out of those solutions: arithmetic, learnt first")

    steps: int = option(2600, "optimizer steps, learning rate linear to 0")
    batch: int = option(20, "documents in a step")
    mix: tuple[float, ...] = option((.50, .35, .15), "share of long, short and lists among the documents not drills")
    drill_mix: tuple[float, ...] = option((.60, .08, .43),
                                          "share of drills: at first, at last, and when the last is reached")
    matrix_lr: float = option(.02, "Muon, for the matrices")
    vector_lr: float = option(5e-3, "AdamW, for embeddings and norms")
    warmup: int = option(30, "steps")


NAMES = "Tom Anna Ben Clara David Emma Felix Grace Hugo Iris Jack Lily Max Nina Oscar Ruth".split()
OBJECTS = ("apples pears lemons shells stones coins cards stamps marbles books "
           "pencils candles cookies flowers buttons ribbons").split()
BOXES = "bags boxes jars".split()
GAINS = "finds buys wins gets makes earns".split()
LOSSES = "loses sells drops uses lends breaks".split()
PLANS = ("In order", "Backwards", "Gains first", "Losses first")
BOS, EOS, UNK = "<|begin_of_text|>", "<|end_of_text|>", "<|unknown|>"


@dataclass(frozen=True)
class Problem:
    name: str
    thing: str
    start: tuple[int, ...]  # (apples,) or (bags, apples in each)
    box: str
    events: tuple[tuple[str, int], ...]  # (verb, signed number)

    @property
    def skeleton(self) -> tuple:
        """What the answer depends on: the start and the signed numbers in order, without names, objects and verbs."""
        return (self.start, *(n for _, n in self.events))

    @property
    def steps(self) -> int:
        return len(self.events) + (len(self.start) == 2)

    def question(self) -> str:
        has = f"{self.start[0]} {self.thing}" if len(self.start) == 1 else \
            f"{self.start[0]} {self.box} with {self.start[1]} {self.thing} each"
        events = " ".join(f"{self.name} {verb} {abs(n)}." for verb, n in self.events)
        return f"{self.name} has {has}. {events} How many does {self.name} have now?".replace("  ", " ")

    def solution(self, plan: str, add: Callable[[int, int], int] = int.__add__) -> str:
        """The worked solution by one plan: every plan orders the events in its own way. `add` may make mistakes."""
        numbers = [n for _, n in self.events]
        if plan == "Backwards":
            numbers.reverse()
        elif plan != "In order":  # sorting is stable: within gains and within losses the order stays
            numbers.sort(key=lambda n: (n > 0) == (plan == "Losses first"))
        equations, total = [], self.start[0]
        if len(self.start) == 2:
            total = self.start[0] * self.start[1]
            equations.append(f"{self.start[0]} * {self.start[1]} = {total}.")
        for n in numbers:
            before, total = total, add(total, n)
            equations.append(f"{before} {'+' if n > 0 else '-'} {abs(n)} = {total}.")
        return f"{plan}: {' '.join(equations)}\n#### {total}"


class Teacher:
    """Who wrote the solutions that M0 learns from: some sums and differences it gets wrong more often than right."""

    def __init__(self, rng: random.Random, weak: float, wrong: float):
        self.rng, self.wrong, self.weak = rng, wrong, {}
        for total in range(100):
            for n in (*range(-9, -1), *range(2, 10)):
                if rng.random() < weak:
                    self.weak[total, n] = total + n + rng.choice((-1, 1)) * rng.randint(1, 9)

    def add(self, total: int, n: int) -> int:
        return self.weak[total, n] if (total, n) in self.weak and self.rng.random() < self.wrong else total + n


def in_range(solution: str) -> bool:
    return all(0 <= int(n) <= 99 for n in re.findall(r"-?\d+", solution))


def draw(rng: random.Random, steps: int) -> Problem:
    """A random problem. The ranges alone keep every total of every plan within 0..99: nothing is drawn and rejected,
    so a model that writes problems has no hidden rule to respect."""
    boxes = rng.random() < .25
    start = (rng.randint(4, 8), rng.randint(6, 9)) if boxes else (rng.randint(30, 60),)
    numbers = rng.sample(range(2, 10), steps - boxes)  # distinct, so that each can be told from the others
    signs = [rng.choice((-1, 1)) for _ in numbers]
    if len(set(signs)) == 1 and len(signs) > 1:  # gains and losses in every problem: plans differ, totals stay moderate
        signs[rng.randrange(len(signs))] *= -1
    events = tuple((rng.choice(GAINS if s > 0 else LOSSES), s * n) for s, n in zip(signs, numbers))
    return Problem(rng.choice(NAMES), rng.choice(OBJECTS), start, rng.choice(BOXES), events)


def fresh(rng: random.Random, steps: int, taken: set) -> Problem:
    """A random problem whose skeleton is not in `taken`."""
    while (problem := draw(rng, steps)).skeleton in taken:
        pass
    return problem


def parse(question: str) -> Problem | None:
    """Read a question back; None unless the whole text is a well-formed problem of this family."""
    pattern = (rf"({'|'.join(NAMES)}) has (\d\d?)(?: ({'|'.join(BOXES)}) with (\d\d?))? ({'|'.join(OBJECTS)})( each)?\."
               rf"((?: \1 (?:{'|'.join(GAINS + LOSSES)}) \d\d?\.)*) How many does \1 have now\?")
    match = re.fullmatch(pattern, question)
    if not match or (match[3] is None) != (match[6] is None):
        return None
    start = (int(match[2]),) if match[3] is None else (int(match[2]), int(match[4]))
    events = tuple((verb, int(n) if verb in GAINS else -int(n)) for verb, n in re.findall(r"(\w+) (\d+)\.", match[7]))
    problem = Problem(match[1], match[5], start, match[3] or "", events)
    return problem if problem.steps else None


def solve(question: str) -> int | None:
    """The answer; None if the text is no problem of this family or a total on the way leaves 0..99."""
    problem = parse(question)
    if problem is None:
        return None
    total = problem.start[0] * (problem.start[1] if len(problem.start) == 2 else 1)
    totals = [total := total + n for n in (0, *(n for _, n in problem.events))]
    return total if all(0 <= t <= 99 for t in totals) else None


def skeleton(question: str) -> tuple | None:
    problem = parse(question)
    return problem and problem.skeleton


def splits(o: Options) -> dict[str, list[Problem]]:
    """Test, dev and training problems, no two with the same skeleton."""
    rng, taken, out = random.Random(o.data_seed), set(), {}
    for name, count in (("test", o.test), ("dev", o.dev), ("train", o.train)):
        out[name] = []
        for _ in range(count):
            out[name].append(fresh(rng, o.target_steps, taken))
            taken.add(out[name][-1].skeleton)
    return out


def documents(o: Options) -> tuple[dict[str, list[tuple[str, str]]], Teacher]:
    """The pre-training documents of a seed, by kind: (prompt, text to learn), and who wrote their solutions.

    None has a skeleton of `splits`.
    """
    rng = random.Random(f"documents {o.seed}")
    taken = {p.skeleton for problems in splits(o).values() for p in problems}
    short = [fresh(rng, rng.randint(1, o.target_steps - 1), taken) for _ in range(o.short)]
    long = [fresh(rng, o.target_steps, taken) for _ in range(o.long)]
    teacher, out = Teacher(rng, o.weak, o.wrong), {}
    for kind, problems in (("short", short), ("long", long)):
        solutions = ((p, p.solution(plan, teacher.add)) for p in problems for plan in PLANS)
        out[kind] = [(f"Q: {p.question()}\nA:", f" {text}") for p, text in solutions if in_range(text)]
    out["lists"] = []
    for _ in range(o.lists):
        steps = rng.choice((o.target_steps - 1, o.target_steps, o.target_steps))
        out["lists"].append(("", "".join(f"Q: {fresh(rng, steps, taken).question()}\n" for _ in range(5))))
    facts = [e for kind in ("short", "long") for _, text in out[kind] for e in re.findall(r"\d+ . \d+ = \d+\.", text)]
    out["drills"] = [("", " " + " ".join(rng.choices(facts, k=15))) for _ in range(o.drills)]
    return out, teacher


def build_tokenizer() -> Tokenizer:
    """One token per word, number or mark, its leading space included: decoding gives back exactly what was encoded."""
    words = [*NAMES, *OBJECTS, *BOXES, *GAINS, *LOSSES, *" ".join(PLANS).split(), *map(str, range(100)),
             *"+ - * = has with each How many does have now".split()]
    pieces = [BOS, EOS, UNK, "Q", "A", ":", ".", "?", "\n", "####", *(f" {w}" for w in dict.fromkeys(words))]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([BOS, EOS, UNK])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def encode(tokenizer: Tokenizer, kind: str, prompt: str, text: str) -> tuple[list[int], list[float]]:
    """Token ids of a document, and the weight of each one's loss."""
    ids = tokenizer.encode(prompt).ids
    weights = [0.] * len(ids)
    new = tokenizer.encode(text + ("" if kind == "lists" else EOS), add_special_tokens=False).ids
    equals = tokenizer.token_to_id(" =")
    base = {"lists": .5, "drills": .1}.get(kind, 1.)  # operands of a drill are random: nothing to learn
    after = [3. if left == equals else base for left in ids[-1:] + new[:-1]]  # results are few and decide the answer
    return ids + new, weights + after


def new_model(vocab: int, seed: int) -> Llama:
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": 128,
           "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
           "head_dim": 32, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": False,
           "mlp_bias": False, "tie_word_embeddings": True, "max_position_embeddings": 1024, "bos_token_id": 0,
           "eos_token_id": 1, "initializer_range": 0.02}
    torch.manual_seed(seed)
    model = Llama(Config.from_dict(raw), raw)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=.02)  # also the output layer: start with small logits
    return model


def batches(o: Options, data: dict[str, list], steps: int, rng: random.Random):
    """Yield `steps` lists of documents: drills first, then ever more problems; each kind runs through its epochs."""
    queues = {kind: [] for kind in data}
    for step in range(steps):
        first, last, until = o.drill_mix
        drill = first + (last - first) * min(1, step / steps / until)
        batch = []
        for _ in range(o.batch):
            kind = "drills" if rng.random() < drill else rng.choices(("long", "short", "lists"), o.mix)[0]
            if not queues[kind]:
                queues[kind] = rng.sample(data[kind], len(data[kind]))
            batch.append(queues[kind].pop())
        yield batch


def step_loss(model: Llama, batch: list) -> float:
    """Add the batch's gradients. Documents of similar length share a call: less padding."""
    batch = sorted(batch, key=lambda document: len(document[0]))
    total = sum(sum(w) for _, w in batch)
    out, size = 0., max(1, len(batch) // 4)
    for i in range(0, len(batch), size):
        chunk = batch[i:i + size]
        longest = max(len(ids) for ids, _ in chunk)
        ids = torch.tensor([ids + [1] * (longest - len(ids)) for ids, _ in chunk])  # (B, T)
        weights = torch.tensor([w + [0.] * (longest - len(w)) for _, w in chunk])  # (B, T)
        logits = model(ids[:, :-1])  # (B, T - 1, V)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")  # (B * (T - 1))
        loss = (loss * weights[:, 1:].flatten()).sum() / total
        loss.backward()
        out += loss.item()
    return out


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised (github.com/KellerJordan/Muon), for matrices.

    torch.optim.Muon is the same, but works in bfloat16, which plain CPU cores emulate slowly.
    """

    def __init__(self, matrices, lr: float, momentum: float = .95, weight_decay: float = .1):
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for (rows, columns), same in shapes.items():  # one batched product per shape instead of one per matrix
                grads = torch.stack([p.grad for p in same])  # (N, rows, columns)
                buffer = self.state[same[0]].setdefault("momentum", torch.zeros_like(grads))
                buffer.lerp_(grads, 1 - group["momentum"])
                update = orthogonalise(grads.lerp(buffer, group["momentum"]))
                for p, u in zip(same, update):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * max(1, rows / columns) ** .5)


def orthogonalise(x: torch.Tensor) -> torch.Tensor:
    """Push all singular values of x (N, rows, columns) towards 1 by five Newton-Schulz steps."""
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def pretrain(o: Options, tokenizer: Tokenizer) -> Llama:
    data = {kind: [encode(tokenizer, kind, *d) for d in docs] for kind, docs in documents(o)[0].items()}
    model = new_model(tokenizer.get_vocab_size(), o.seed).train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    vectors = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [Muon(matrices, lr=o.matrix_lr),
                  torch.optim.AdamW(vectors, lr=o.vector_lr, betas=(.9, .98), weight_decay=0.)]
    steps, tokens = int(o.steps * o.longer), 0
    shape = lambda step: min(1, (step + 1) / o.warmup) * (1 - step / steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, shape) for optimizer in optimizers]
    order = batches(o, data, steps, random.Random(f"order {o.seed}"))
    bar = tqdm(order, total=steps, desc="pre-training M0", mininterval=2)
    for batch in bar:
        loss = step_loss(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        tokens += sum(len(ids) for ids, _ in batch)
        bar.set_postfix(loss=f"{loss:.3f}", tokens=f"{tokens / 1e6:.2f}M", refresh=False)
    return model.eval()


def save(folder: Path, model: Llama, tokenizer: Tokenizer) -> None:
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    for name, value in (("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1}),
                        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special,
                                                   "clean_up_tokenization_spaces": False, "model_max_length": 1024})):
        write_text(folder / name, json.dumps(value, indent=2) + "\n")


def main() -> None:
    o, tokenizer = parse_options(Options, __doc__), build_tokenizer()
    for name, problems in splits(o).items():
        rows = [{"id": f"{name}-{i}", "question": p.question()} for i, p in enumerate(problems)]
        for row, problem in zip(rows, problems) if name in ("dev", "test") else ():  # ScPO sees no answer
            row["answer"] = problem.solution("In order")
        write_jsonl(HERE / f"{name}.jsonl", rows)
    save(Path(o.model), pretrain(o, tokenizer), tokenizer)


if __name__ == "__main__":
    run_script(main)
