"""Files that people read. One that has its name is whole: half-written ones have another."""

import glob
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common.cli import FREE_SPACE, FULL, InputError

try:
    import fcntl
except ImportError:  # Windows: a run's folder is not locked there
    fcntl = None


def read_jsonl(
    path: str | Path,
    required: tuple[str, ...] = (),
    complaint: Callable[[dict], str | None] = lambda row: None,
) -> list[dict]:
    """The objects of a JSON-lines file (or .gz), each with the `required` fields.

    complaint: says what is wrong with a row, or None. Raises InputError naming file and line.
    """
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            mistake = f"not valid JSON ({error}); mend or delete the line"
            raise InputError(f"{path}, line {number}: {mistake}") from error
        if not isinstance(row, dict):
            found = type(row).__name__
            raise InputError(f"{path}, line {number}: expected a JSON object, found a {found}")
        missing = [name for name in required if name not in row]
        if missing:
            fields = f"has no {', '.join(map(repr, missing))}; it has {', '.join(row)[:200]}"
            raise InputError(f"{path}, line {number}: {fields}")
        wrong = complaint(row)
        if wrong:
            raise InputError(f"{path}, line {number}: {wrong}")
        rows.append(row)
    return rows


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file (or .gz). Not by splitlines: U+2028 may stand inside a text."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            return file.read().split("\n")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def read_responses(path: str) -> list[dict]:
    """The lines of a responses.jsonl, made here or elsewhere; one without `id` gets its number."""
    rows = read_jsonl(path, ("responses",), wrong_with_responses)
    if not rows:
        raise InputError(f"{path}: holds no problem")
    return [{**row, "id": str(row.get("id", number))} for number, row in enumerate(rows)]


def wrong_with_responses(row: dict) -> str | None:
    """What is wrong with a line of a responses.jsonl, or None."""
    texts, ended = row["responses"], row.get("ended")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        return f"`responses` must be a list of k texts, found {str(texts)[:40]!r}"
    if not isinstance(row.get("id", ""), (str, int)):
        return "`id` must be a text or a number"
    good = isinstance(ended, list) and [type(e) for e in ended] == [bool] * len(texts)
    if ended is not None and not good:
        return f"`ended` must say true or false for each of the {len(texts)} responses"
    if not are_ids(row.get("response_ids", [None] * len(texts)), len(texts)):
        return f"`response_ids` must be token numbers, or null, for each of {len(texts)} responses"
    if not isinstance(row.get("greedy", ""), str):
        return "`greedy` must be one text"
    return None


def sampled_ids(row: dict) -> list[list[int] | None]:
    """The tokens of a line's responses, then of its extra ones; None where they are not known."""
    found = []
    for texts, ids in (("responses", "response_ids"), ("extra_responses", "extra_response_ids")):
        found += row.get(ids) or [None] * len(row.get(texts, []))
    return found


def are_ids(value: Any, count: int) -> bool:
    """Whether these are so many lists of token numbers, or null."""
    if not isinstance(value, list) or len(value) != count:
        return False
    for ids in value:
        if ids is not None and not isinstance(ids, list):
            return False
        if not all(type(i) is int and i >= 0 for i in ids or []):
            return False
    return True


TEXT = (str, "a text")
NUMBER = ((int, float), "a number")
YES_OR_NO = (bool, "true or false")
# The kinds of the fields that the stages of a run read from each other.
KINDS = {
    "id": ((str, int), "a text or a number"),
    "question": TEXT,
    "prompt": TEXT,
    "extra_responses": (list, "a list of texts"),
    "rewards": (list, "a list of numbers"),
    "chosen": TEXT,
    "rejected": ((str, type(None)), "a text, or null"),
    "weight": NUMBER,
    "ended_chosen": YES_OR_NO,
    "ended_rejected": YES_OR_NO,
    "reference_chosen_logp": NUMBER,
    "reference_rejected_logp": NUMBER,
    "epoch": NUMBER,
    "pairs": NUMBER,
    "loss": NUMBER,
}


def wrong_with_stage(row: dict) -> str | None:
    """What is wrong with a line of a stage's file, or None."""
    for name, (kinds, rule) in KINDS.items():
        if name in row and not isinstance(row[name], kinds):
            return f"`{name}` must be {rule}, found {str(row[name])[:40]!r}"
    for reward in row.get("rewards", []):
        if not isinstance(reward, NUMBER[0]):
            return f"`rewards` must be a list of numbers, found {str(reward)[:40]!r}"
    if row.get("rejected") is not None and "ended_rejected" not in row:
        return "has no 'ended_rejected'"
    for name in ("ids_chosen", "ids_rejected"):
        if not are_ids([row.get(name)], 1):
            return f"`{name}` must be a list of token numbers, or null"
    if row.get("extra_responses"):
        extra = {"responses": row["extra_responses"], "ended": row.get("extra_ended", "missing")}
        if "extra_response_ids" in row:
            extra["response_ids"] = row["extra_response_ids"]
        if wrong_with_responses(extra):
            return ("`extra_responses` must be texts, `extra_ended` true or false for each, "
                    "`extra_response_ids` token numbers or null")
    return wrong_with_responses(row) if "responses" in row else None


def read_json(path: Path) -> dict:
    """The JSON object in a file, {} if there is no such file. Raises InputError if it is broken."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def write_text(path: str | Path, text: str) -> None:
    """Write a file that is either whole or absent: under another name first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with writing(path), open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            flush(file)  # on the disk before the rename says so
    except InputError:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """What keeps a file from being written, as a full disk does, becomes one line that names it."""
    try:
        yield
    except OSError as error:
        advice = FREE_SPACE if error.errno in FULL else ""
        reason = f"cannot be written ({error.strerror or error}){advice}"
        raise InputError(f"{path}: {reason}") from error


def flush(file: IO) -> None:
    """Return when all that was written to a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def write_jsonl(path: str | Path, rows: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_new(path: str | Path, rows: list[dict]) -> None:
    """Write the --out of a script, unless somebody else has made one of that name meanwhile."""
    path, free, number = Path(path), Path(path), 1
    while free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    write_jsonl(free, rows)
    remove(path.parent, batches_of(path))
    if free != path:
        raise InputError(f"--out {path}: has appeared meanwhile; the lines are in {free}")


def batches_of(path: Path) -> str:
    """The pattern of the files of common/journal.py, which lie beside the one to be made."""
    return f"{glob.escape(path.name)}.batches-[0-9]*"


def write_json(path: str | Path, value: dict) -> None:
    """Write a file, unless it says just that already."""
    path, text = Path(path), json.dumps(value, indent=2) + "\n"
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def check_out(path: str | None) -> None:
    """Refuse, before the work and not after it, an --out that exists or cannot be written."""
    if path is None:
        return
    part = Path(f"{path}.part")
    for taken, advice in ((Path(path), ""), (part, "delete it if a stop has left it, or ")):
        if taken.exists():
            raise InputError(f"--out {path}: {taken} exists already; {advice}choose another name")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); choose another name"
        raise InputError(f"--out {path}: {reason}") from error


def remove(folder: Path, *patterns: str) -> None:
    """Delete files and folders, if they are there."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder. The lock ends with the process, however that ends."""
    with open(folder / "lock", "a") as file:  # "w" would touch the file
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            advice = "another process is at work there; wait for it, or choose another --out"
            raise InputError(f"--out {folder}: {advice}") from error
        except OSError:
            pass  # some network file systems have no locks
        yield
