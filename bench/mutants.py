"""Would the tests notice? Small mistakes put into the method, one at a time, and the tests run.

    python bench/mutants.py [--count 300] [--seed 0] [--jobs 2] [--out mutants.json]

A mutant is a copy of the project with one operator, number, condition or statement changed in
scpo.py, vote.py or the training in train.py. It is killed if a test fails. The survivors are
printed: each is a missing test, or a change that changes nothing; those that are known to change
nothing are counted as survivors without a run. A run that was stopped goes on with the same
command, unless one of these files was changed.
"""

import ast
import copy
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, integer, run_script
from common.files import read_json, write_json

# The functions that are changed (None: all), and the tests that are run, the likeliest first.
TRAINING = ("make_pairs", "pairs_of_problem", "pair_line", "choose_pairs", "train_model",
            "optimize", "forward_backward", "make_reference", "learning_rate")
TARGETS = {
    "scpo.py": (None, "scpo loss methods training eval".split()),
    "vote.py": (None, "vote number answers eval methods puzzle scripts cli".split()),
    "train.py": (TRAINING, "training methods labels loss run resume selection strange_folders "
                 "ranks".split()),
}
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}
CHANGES_NOTHING = {  # (in a line with this text, this change): bench/README.md says why
    ("if most < tau * k - 1e-9", "most < tau * k - 1e-09  →  most <= tau * k - 1e-09"),
    ("ANSWER_TAG.findall", "ANSWER_TAG.findall(text) if '<answer>' in text else []  →  "
     "ANSWER_TAG.findall(text) if True else []"),
    ('text.rfind("####") > last_box', "text.rfind('####') > last_box  →  "
     "text.rfind('####') >= last_box"),
    ("math.isfinite", "chosen_logp + rejected_logp  →  chosen_logp - rejected_logp"),
    ("key=lambda pair: pair.length", "True  →  False"),
    ("metrics = pair_metrics", "1  →  0"),
    ("if world_size() > 1", "1  →  2"),
    ("bar.update()", "bar.update()  →  pass"),
    ("bar.set_postfix", "bar.set_postfix(loss=f\"{metrics['loss']:.3f}\", "
     "**throughput.metrics(), refresh=False)  →  pass"),
    ("free_memory()", "free_memory()  →  pass"),
}
NOT_THE_METHOD = ("main", "options", "show_votes", "show_pair")
LIMIT = 600  # seconds for the tests of one mutant, twice what they take; a longer one is killed


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed, in every way that is known."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
        changed = copy.deepcopy(node)
        changed.op = SWAPS[type(node.op)]()
        yield changed
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        changed = copy.deepcopy(node)
        changed.ops[0] = SWAPS[type(node.ops[0])]()
        yield changed
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1)
        if node.value:
            yield ast.Constant(0)
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    if isinstance(node, ast.UnaryOp):  # without its minus or its `not`
        yield node.operand
    if isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            changed = copy.deepcopy(node)
            changed.test = ast.Constant(value)
            yield changed
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def mutants(source: str, names: tuple[str, ...] | None) -> list[tuple[int, str, str]]:
    """All mutants of a file: line, what was changed, and the whole text."""
    tree, found = ast.parse(source), []
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name in NOT_THE_METHOD:
            continue
        if names and function.name not in names:
            continue
        for parent in ast.walk(function):
            for field, value in ast.iter_fields(parent):
                if field in ("annotation", "returns") or isinstance(value, ast.arguments):
                    continue
                places = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
                for index, node in places:
                    if isinstance(node, ast.AST):
                        found += replaced(tree, parent, field, index, node)
    return found


def replaced(
    tree: ast.Module, parent: ast.AST, field: str, index: int | None, node: ast.AST
) -> Iterator[tuple[int, str, str]]:
    """The texts of the file with that node of its tree changed; the tree is put back."""
    before = ast.unparse(node)
    for changed in changes(node):
        put(parent, field, index, changed)
        text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
        put(parent, field, index, node)
        shown = f"{before.splitlines()[0]}  →  {ast.unparse(changed).splitlines()[0]}"
        yield getattr(node, "lineno", 0), shown, text


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def is_killed(project: Path, file: str, text: str) -> bool:
    whole = (project / file).read_text()
    (project / file).write_text(text)
    tests = [f"tests/test_{name}.py" for name in TARGETS[file][1]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=project, capture_output=True, timeout=LIMIT,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        (project / file).write_text(whole)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--count", type=integer(1), default=300, help="mutants, at random")
    parser.add_argument("--seed", type=integer(0), default=0, help="of the choice")
    parser.add_argument("--jobs", type=integer(1), default=2, help="copies that are tested at once")
    parser.add_argument("--out", default="mutants.json", help="the numbers and the survivors")
    args = parser.parse_args()
    everything = []
    for file, (names, _) in TARGETS.items():
        found = mutants((ROOT / file).read_text(), names)
        everything += [(file, *mutant) for mutant in found]
    chosen = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    made_of = {"seed": args.seed, "of": len(everything)}
    for file in TARGETS:
        made_of[file] = hashlib.sha256((ROOT / file).read_bytes()).hexdigest()[:12]
    result = read_json(Path(args.out))
    if result.get("made_of") != made_of:
        result = {"mutants": 0, "killed": 0, "survivors": [], "made_of": made_of}
    projects = Queue()

    def survives(file: str, text: str, line: int = 0, change: str = "") -> bool:
        source = (ROOT / file).read_text().splitlines()[line - 1]
        if any(part in source and change == known for part, known in CHANGES_NOTHING):
            return True
        project = projects.get()  # one that no other thread has
        try:
            return not is_killed(project, file, text)
        finally:
            projects.put(project)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as threads:
        for job in range(args.jobs):
            project = Path(folder) / str(job)
            ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "shared")
            shutil.copytree(ROOT, project, ignore=ignored)
            projects.put(project)
        sound = threads.map(survives, TARGETS, [(ROOT / file).read_text() for file in TARGETS])
        for file, passes in zip(TARGETS, sound):
            if not passes:
                raise InputError(f"{file}: its tests fail without a mistake already")
        todo = chosen[result["mutants"] :]
        rows = [(file, text, line, change) for file, line, change, text in todo]
        outcomes = threads.map(survives, *zip(*rows))
        for (file, _, line, change), survived in zip(rows, outcomes):
            result["mutants"] += 1
            result["killed"] += not survived
            if survived:
                result["survivors"].append(f"{file}:{line}: {change}")
                print(result["survivors"][-1], flush=True)
            write_json(Path(args.out), result)
    tried = f"{result['killed']} of {result['mutants']} mutants killed"
    print(f"{tried}, of {len(everything)} there are")


if __name__ == "__main__":
    run_script(main)
