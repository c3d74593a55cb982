"""A run's folder: stages that talk through files, each made once.

    runs/toy/options.json      the options that the run was begun with
    runs/toy/stages.json       of each finished stage: its seconds, and which code made it
    runs/toy/results.json      what is known of M0, M1, …
    runs/toy/M1/…              the files of round 1

A finished file is not made again, so a run that was stopped goes on when it is started once more.
It is refused if an option was changed that a finished file depends on, and it warns of files that
other code has made. `--from` takes over another run's files, as far as the options agree.
"""

import filecmp
import hashlib
import json
import shlex
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from common.cli import InputError, printable
from common.distributed import on_main, rank
from common.files import (locked, read_json, read_jsonl, remove, sampled_ids, write_json,
                          write_jsonl, wrong_with_stage)
from tasks.task import TASKS

ROOT = Path(__file__).resolve().parent.parent
# What a round makes, in order. The model is trained on what stands before it, M0 is given.
STAGES = (
    "problems.jsonl",
    "responses.jsonl",
    "rewards.jsonl",
    "pairs.jsonl",
    "reference.jsonl",
    "log.jsonl",
    "epochs.jsonl",
    "model",
    "eval_responses.jsonl",
)
ORDER = [stage.partition(".")[0] for stage in (*STAGES, "eval.json")]
# The fields that the lines of each have at least.
FIELDS = {
    "problems.jsonl": ("id", "question"),
    "responses.jsonl": ("id", "question", "prompt", "responses"),
    "rewards.jsonl": ("id", "rewards"),
    "pairs.jsonl": ("id", "prompt", "chosen", "rejected", "weight", "ended_chosen"),
    "reference.jsonl": ("id", "reference_chosen_logp", "reference_rejected_logp"),
    "log.jsonl": ("step", "epoch", "pairs", "loss"),
    "epochs.jsonl": ("epoch",),
    "eval_responses.jsonl": ("id", "question", "responses", "greedy", "gold"),
}
# Those that not every run has.
OPTIONAL = ("rewards.jsonl", "reference.jsonl", "epochs.jsonl", "eval_responses.jsonl")
# What a training leaves in the round's folder until its model is chosen.
OF_TRAINING = ("epochs", "checkpoint-[0-9]*")
# The first stage of a round that an option changes. An option that is not listed here or below
# changes every stage.
FIRST_CHANGE = {
    "problems.jsonl": ("problems", "new_problems"),
    "responses.jsonl": ("k", "extra", "extra_temperature"),
    "rewards.jsonl": ("reward_model",),
    "pairs.jsonl": ("method", "tau", "unweighted", "answers"),
    "log.jsonl": ("beta", "alpha", "lr", "warmup_ratio", "epochs", "batch_size", "max_grad_norm",
                  "select", "dev"),
    "eval_responses.jsonl": ("test",),
}
FOR_NEW_PROBLEMS = ("writer", "test")  # a question of the test is not written again
# These change where and how fast a run is made, or how far it goes.
NO_CHANGE = (
    "out from until rounds no_eval dry_run device max_num_seqs micro_batch_size save_every "
    "activation_checkpointing"
).split()


class ReachedUntil(Exception):
    """The stage that --until names is finished."""


class Run:
    """A folder of stages. Every rank has one; rank 0 writes."""

    def __init__(self, folder: str | Path, until: str | None = None):
        self.folder, self.until = Path(folder), until

    def stage(
        self, name: str, make: Callable[..., list[dict]], *args: Any,
        same_ids_as: list[dict] | None = None, pairs_of: list[dict] | None = None,
    ) -> list[dict]:
        """The lines of a stage's file: read if it is there, else made by all ranks together.

        same_ids_as: rows of another stage; to each belongs one line of this one.
        pairs_of: the responses of which the lines are pairs.
        """
        if self.has(name):
            rows = read_stage(self.folder / name, same_ids_as)
            if pairs_of is not None:
                check_pairs(self.folder / name, rows, pairs_of)
            on_main(remove, self.folder, f"{name}.batches-*")  # if it died right after the file
            self.keep(name)
            return rows
        self.stop_before(name)
        started = time.time()
        rows = make(*args)
        on_main(write_jsonl, self.folder / name, rows)
        on_main(remove, self.folder, f"{name}.batches-*")  # common/journal.py
        self.record(name, time.time() - started)
        self.stop_after(name)
        return rows

    def has(self, name: str) -> bool:
        """Whether rank 0 sees it: a network file system may give others an old "no" for a while."""
        return on_main((self.folder / name).exists)

    def keep(self, name: str) -> None:
        print(f"{self.folder / name}: kept")
        self.stop_after(name)

    def record(self, name: str, seconds: float) -> None:
        """Note the seconds of a stage, and the code that made it."""
        on_main(write_record, self.folder, name, seconds)

    def stop_before(self, name: str) -> None:
        """Raises ReachedUntil if --until names a stage before this one."""
        if self.until and place(name) > place(self.until):
            raise ReachedUntil

    def stop_after(self, name: str) -> None:
        """Raises ReachedUntil if --until names this stage, or one before it."""
        if self.until and place(name) >= place(self.until):
            raise ReachedUntil


def place(name: str) -> tuple[int, int]:
    """The round of a stage, and its place in it: M1/pairs.jsonl, or M1/pairs, is (1, 3)."""
    round_, stage = name.split("/")
    return int(round_.removeprefix("M")), ORDER.index(stage.partition(".")[0])


def read_stage(path: Path, of: list[dict] | None) -> list[dict]:
    """The lines of a finished stage. Raises InputError if they are not what this run made."""
    rows = read_jsonl(path, FIELDS[path.name], wrong_with_stage)
    rows = [{**row, "id": str(row["id"])} if "id" in row else row for row in rows]
    anew = "delete the file to make it anew"
    if not rows:
        raise InputError(f"{path}: is empty; {anew}")
    if of is not None and [row["id"] for row in rows] != [row["id"] for row in of]:
        raise InputError(f"{path}: its lines are not those of this run's problems; {anew}")
    return rows


def check_pairs(path: Path, pairs: list[dict], responses: list[dict]) -> None:
    """Raises InputError for a pair that is not made of these responses."""
    prompts, given = {}, {}
    for row in responses:
        texts = [*row["responses"], *row.get("extra_responses", [])]
        prompts[row["id"]] = row["prompt"]
        given[row["id"]] = [*zip(texts, sampled_ids(row)), *((text, None) for text in texts)]
    for pair in pairs:
        taken = []
        for side in ("chosen", "rejected"):
            if pair[side] is not None:
                taken.append((pair[side], pair.get(f"ids_{side}")))
        same = pair["prompt"] == prompts.get(pair["id"])
        if not same or any(response not in given[pair["id"]] for response in taken):
            reason = f"the pair of {pair['id']} is not made of the responses in responses.jsonl"
            raise InputError(f"{path}: {reason}; delete the file to make it anew")


def write_record(folder: Path, name: str, seconds: float) -> None:
    record = read_stages(folder)
    digest, code = fingerprint()
    record["code"][digest] = code
    record["stages"][name] = {"seconds": round(seconds, 1), "code": digest}
    write_json(folder / "stages.json", record)


def read_stages(folder: Path) -> dict[str, dict]:
    """stages.json: "stages" by name, and "code", the hashes of files, by what they have in sum.

    A damaged one is as good as none: all that is lost is who made what.
    """
    try:
        record = read_json(folder / "stages.json")
        for name, stage in record["stages"].items():
            place(name), stage["seconds"] + 0.0, stage["code"] + ""
        for files in record["code"].values():
            files.keys()
        return record
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return {"stages": {}, "code": {}}


# --------------------------------------------------------------------------------------------
# Beginning a run, or going on with it


@contextmanager
def open_run(args: Namespace) -> Iterator[Run]:
    """The run of --out, its options checked and noted; a second process is kept out meanwhile.

    Raises InputError, and changes nothing, if a finished file depends on a changed option.
    """
    run = Run(args.out, args.until)
    options = portable(vars(args))
    on_main(make_folder, run.folder)
    lock = locked(run.folder) if rank() == 0 else nullcontext()
    with lock:
        on_main(prepare, run.folder, options)
        try:
            yield run
        except ReachedUntil:
            print(f"--until {run.until}: done")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        advice = "is a file; choose another name for the run's folder"
        raise InputError(f"--out {folder}: {advice}") from error


def portable(options: dict) -> dict:
    """The options as options.json has them, the shipped files relative to the project.

    So a copy of the project knows that its toy model is the same.
    """
    shipped = f"{TASKS.parent}/"
    found = {}
    for name, value in json.loads(json.dumps(options)).items():
        found[name] = value.removeprefix(shipped) if isinstance(value, str) else value
    return found


def prepare(folder: Path, options: dict) -> None:
    before = portable(read_json(folder / "options.json"))
    if before and not before.keys() >= {"task", "rounds", "seed"}:
        reason = "its options.json is not of a run of train.py"
        raise InputError(f"--out {folder}: {reason}; choose another --out")
    made = [path for name in STAGES for path in folder.glob(f"M*/{name}")]
    made += [path for path in folder.glob("*.json") if path.name in ("results.json", "stages.json")]
    if made and not before and not options["from"]:
        reason = f"has {made[0].relative_to(folder)}, but no options.json that says how it was made"
        raise InputError(f"--out {folder}: {reason}; choose another --out, or delete the stages")
    if before:
        refuse_changes(folder, before, options)
    elif options["from"]:
        copy_stages(Path(options["from"]), folder, options)
    if options != before:
        write_json(folder / "options.json", options)
    warn_of_other_code(folder)


def refuse_changes(folder: Path, before: dict, options: dict) -> None:
    """Raise InputError if there is a file that depends on an option that was changed."""
    for name, changed in differences(before, options):
        made = [path for path in (folder / name, *training_of(folder, name)) if path.exists()]
        if changed and made:
            option, then, now = changed[0]
            file = made[0].relative_to(folder)
            raise InputError(
                f"--out {folder}: {file} was made with {option} {then}, not {now}; choose another "
                f"--out, perhaps with --from {folder} to start from the stages that agree"
            )


def training_of(folder: Path, name: str) -> list[Path]:
    """Checkpoints and models of a training that is under way, if the stage is its log.jsonl."""
    path, found = folder / name, []
    if path.name == "log.jsonl":
        for pattern in OF_TRAINING:
            found += path.parent.glob(pattern)
    return found


def differences(before: dict, now: dict) -> Iterator[tuple[str, list[tuple]]]:
    """The files of a run in order, each with the options that change it: (option, before, now)."""
    before, now = in_use(before), in_use(now)

    def changes(options: Sequence[str], t: int) -> list[tuple]:
        found = []
        for option in options:
            then, value = per_round(before.get(option), t), per_round(now[option], t)
            if then != value and (option in before or value):  # a new option's 0: as before
                found.append((option, then, value))
        return found

    listed = [*NO_CHANGE, *FOR_NEW_PROBLEMS]
    for options in FIRST_CHANGE.values():
        listed += options
    changed = changes([option for option in now if option not in listed], 0)
    yield "M0/eval_responses.jsonl", changed + changes(("k", "test"), 0)
    for t in range(1, now["rounds"] + 1):
        for stage in STAGES:
            own = changes(FIRST_CHANGE.get(stage, ()), t)
            if stage == "problems.jsonl" and per_round(now["new_problems"], t):
                own += changes(FOR_NEW_PROBLEMS, t)
            yield f"M{t}/{stage}", changed + own
            if stage != "eval_responses.jsonl":
                changed = changed + own


def in_use(options: dict) -> dict:
    """The options, None in place of those that no stage of this run looks at."""
    idle = []
    if options.get("method") not in ("gold", "semi"):
        idle.append("answers")
    if options.get("method") != "reward":
        idle.append("reward_model")
    if options.get("select") == "last":
        idle.append("dev")
    return {**options, **dict.fromkeys(idle)}


def per_round(value: Any, t: int) -> Any:
    """The value of an option in round t; a list has one for each round, the last one repeated."""
    return value[min(max(t, 1), len(value)) - 1] if value and isinstance(value, list) else value


def copy_stages(source: Path, folder: Path, options: dict) -> None:
    """Take over the files of another run, up to the first that would be made differently here.

    source: the run's folder, or a stage in it, which is then the last that is taken over.
    """
    last, why = "", ""
    if source.name in STAGES:
        source, last = source.parent.parent, f"{source.parent.name}/{source.name}"
    before = portable(read_json(source / "options.json"))
    if not before:
        advice = "give the folder of a run, or a stage of it as runs/toy/M1/responses.jsonl"
        raise InputError(f"--from {source}: has no options.json; {advice}")
    record, taken = read_stages(source), {}
    for name, changed in differences(before, options):
        if last and place(name) > place(last):
            break
        round_folder, stage = name.split("/")
        of_training = stage in ("log.jsonl", "epochs.jsonl")  # of no use without the model
        whole = not of_training or (source / round_folder / "model").exists()
        if changed or not whole or not (source / name).exists():
            if stage in OPTIONAL:
                continue
            if changed:
                option, then, now = changed[0]
                why = f"; {name} was made with {option} {then}, not {now}"
            break
        copy_whole(source / name, folder / name)
        taken[name] = record["stages"].get(name, {"seconds": 0.0, "code": ""})
        if last:  # that it was made by other code is what the user has asked for
            taken[name] = {**taken[name], "accepted": fingerprint()[0]}
    write_json(folder / "stages.json", {"stages": taken, "code": record["code"]})
    print(f"{folder}: taken over from {source}: {', '.join(taken) or 'nothing'}{why}")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file or a folder, which has its name only when it is whole."""
    if target.exists():  # before a stop; or it is not ours
        if not is_copy(source, target):
            raise InputError(f"{target}: is not that of {source}; choose another --out")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if source.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part)
    else:
        shutil.copyfile(source, part)
    part.replace(target)


def is_copy(source: Path, target: Path) -> bool:
    if source.is_dir():
        return all(is_copy(path, target / path.name) for path in source.iterdir())
    return target.is_file() and filecmp.cmp(source, target, shallow=False)


def fingerprint() -> tuple[str, dict[str, str]]:
    """Short hashes of what can change a result (scripts, common/, tasks/): of all, of each file."""
    code = {}
    for pattern in ("*.py", "common/*.py", "tasks/**/*.py", "tasks/*/task.json"):
        for path in sorted(ROOT.glob(pattern)):
            code[path.relative_to(ROOT).as_posix()] = short_hash(path.read_bytes())
    return short_hash(json.dumps(code).encode()), code


def short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def warn_of_other_code(folder: Path) -> None:
    """One line on the files that other code has made, and how to make them anew."""
    record, (digest, now) = read_stages(folder), fingerprint()
    kept = sorted((name for name in record["stages"] if (folder / name).exists()), key=place)
    stale = []
    for name in kept:
        stage = record["stages"][name]
        if digest not in (stage["code"], stage.get("accepted")):
            stale.append(name)
    if not stale:
        return
    changed = set()
    for name in stale:
        then = record["code"].get(record["stages"][name]["code"], {})
        changed.update(file for file in {*then, *now} if then.get(file) != now.get(file))
    outdated = made_from(stale, kept)
    paths = [folder / name for name in in_short(outdated, kept)]
    for round_ in dict.fromkeys(name.partition("/")[0] for name in outdated):
        if folder / round_ not in paths:
            paths += training_of(folder, f"{round_}/log.jsonl")
    command = shlex.join(["rm", "-r", *map(str, paths)])
    files = printable(", ".join(sorted(changed)))  # some names are those of stages.json
    print(f"WARNING: {files} changed since these stages were made, which are KEPT: "
          f"{', '.join(in_short(stale, kept))}. To make them anew: {command}")


def made_from(stale: list[str], kept: list[str]) -> list[str]:
    """The stale stages, and what was made from them: of an evaluation nothing is."""
    found, outdated = [], False
    for name in kept:
        if not name.endswith("/eval_responses.jsonl"):
            outdated = outdated or name in stale
        if outdated or name in stale:
            found.append(name)
    return found


def in_short(names: list[str], kept: list[str]) -> list[str]:
    """Stages by name, or by their round if it is all that is kept of it."""
    shown = []
    for round_ in dict.fromkeys(name.partition("/")[0] for name in names):
        mine = [name for name in names if name.startswith(f"{round_}/")]
        whole = mine == [name for name in kept if name.startswith(f"{round_}/")]
        shown += [round_] if whole else mine
    return shown


# --------------------------------------------------------------------------------------------
# Results


def write_results(run: Run) -> dict[str, dict]:
    """Gather what is known of M0, M1, … from their files: results.json."""
    results = {}
    stages = read_stages(run.folder)["stages"]
    rounds = [path for path in run.folder.glob("M*") if path.name[1:].isdecimal()]
    for folder in sorted(rounds, key=lambda path: int(path.name[1:])):
        if not (folder / "eval.json").exists() and not (folder / "model").exists():
            continue
        entry = {"seconds": 0.0}
        for name, stage in stages.items():
            if name.startswith(f"{folder.name}/"):
                entry["seconds"] = round(entry["seconds"] + stage["seconds"], 1)
        if (folder / "pairs.jsonl").exists():
            entry["pairs"] = len(read_jsonl(folder / "pairs.jsonl"))
        results[folder.name] = {**entry, **read_json(folder / "eval.json")}
    write_json(run.folder / "results.json", results)
    return results
