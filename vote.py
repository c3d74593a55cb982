"""Which answer did each response give, and how many responses agree with it?

    python vote.py runs/toy/M1/responses.jsonl              # the votes, problem by problem

The vote function of ScPO (paper, section 2) counts, for each of the k responses y_1 … y_k to a problem, how many end in
the same final answer:   V(y) = Σ_m 1[ans(y_m) = ans(y)].

"No answer" is None from the extractor to the vote: it is never a candidate (V = 0), yet k stays the denominator.
Answers are brought to one canonical spelling before they are counted, so "1,000", "$1000" and "1000.00" are one answer.

Only the standard library is used, so that this file can be read and reused alone. Because it imports nothing of ours,
it also holds what every script shares: JSON lines, options from a dataclass, and one-line errors.
"""

import argparse
import json
import os
import re
import sys
import textwrap
import typing
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

# ---------------------------------------------------------------------------------------------------------------------
# Extraction: text → canonical answer or None

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:/\d+)?"  # 1,000  18  18.50  .5  3/4
SIGNED = rf"[-−+]?\s*+\\?\$?\s*+[-−]?\s*+(?=[\d.]){NUMBER}"  # \s*+ never backtracks: linear in a run of blanks
MARKED = re.compile(rf"####\s*+({SIGNED})")  # GSM8K's last line: #### N
OPENING = re.compile(rf"\s*+(?:[a-z]\s*+=\s*+)?({SIGNED})", re.IGNORECASE)  # N or x = N
LONGEST = 40  # characters; no benchmark has such a number, and a runaway string of digits must not cost quadratic time


def canonical_number(text: str) -> str | None:
    """One spelling per value: "$1,000.50" → "1000.5", "18.00" → "18", "3/4" → "0.75", "2/6" → "1/3"; else None."""
    digits = re.sub(r"[\s,$\\+]", "", text).replace("−", "-")
    if not digits or len(digits) > LONGEST:
        return None
    numerator, _, denominator = digits.partition("/")
    try:
        value = Fraction(numerator) / Fraction(denominator or 1)
    except (ValueError, ZeroDivisionError):
        return None
    decimal = f"{Decimal(value.numerator) / Decimal(value.denominator):f}"  # 28 significant digits
    return decimal if Fraction(decimal) == value else str(value)


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}`; None if there is none or its braces never close. Linear time."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for brace in re.compile(r"(?<!\\)[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def extract_number(text: str) -> str | None:
    """The number of the last `#### N`; without one, the number that opens the last balanced `\\boxed{…}`."""
    marked = MARKED.findall(text)
    if marked:
        return canonical_number(marked[-1])
    boxed = last_boxed(text)
    number = OPENING.match(boxed.replace("{,}", ",").replace("\\!", "")) if boxed is not None else None
    return canonical_number(number.group(1)) if number else None


EXTRACTORS = {"toy": extract_number, "gsm8k": extract_number}


def extract_answer(text: str, task: str) -> str | None:
    """The canonical final answer of a response, or None if it has none. Raises InputError for an unknown task."""
    if task not in EXTRACTORS:
        raise InputError(f"task {task!r} has no answer extractor; known: {', '.join(EXTRACTORS)}")
    return EXTRACTORS[task](text)


def same_answer(a: str | None, b: str | None, task: str) -> bool:
    """Whether two canonical answers are equal. None equals nothing, not even None."""
    return a is not None and a == b


# ---------------------------------------------------------------------------------------------------------------------
# Voting


def count_votes(answers: list[str | None], task: str) -> list[int]:
    """V(y) of each response (section 2): how many of the k responses give its answer, itself included; 0 for None."""
    return [sum(same_answer(answer, other, task) for other in answers) for answer in answers]


def response_answers(row: dict, task: str) -> list[str | None]:
    """The answers of one line of `responses.jsonl`. A response cut off at the token limit has none."""
    return [extract_answer(text, task) if ended else None
            for text, ended in zip(row["responses"], row.get("ended") or [True] * len(row["responses"]), strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# What every script shares


class InputError(Exception):
    """A user's mistake: one line that names the file, line or option and says what to do about it."""


def read_jsonl(path: str | Path, required: tuple[str, ...] = ()) -> list[dict]:
    """The objects of a JSON-lines file. Raises InputError naming the file and the line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may stand inside a text
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); mend or delete the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, found a {type(row).__name__}")
        absent = [name for name in required if name not in row]
        if absent:
            raise InputError(f"{path}, line {number}: has no {', '.join(map(repr, absent))}; it has {', '.join(row)}")
        rows.append(row)
    return rows


def write_text(path: str | Path, text: str) -> None:
    """Write a file that is either whole or absent: beside its place first, flushed to disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def write_jsonl(path: str | Path, rows: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def option(default: typing.Any, reason: str) -> typing.Any:
    """A field of an options dataclass; `reason` (with the unit) becomes its line of `--help`."""
    return field(default=default, metadata={"help": reason})


def parse_options(options: type, description: str, argv: list[str] | None = None) -> typing.Any:
    """An instance of the dataclass `options` from the command line. A field without default is positional."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(options):
        text = f.metadata.get("help", "").replace("%", "%%")
        kinds = [kind for kind in typing.get_args(f.type) if kind is not type(None)] if f.default is None else []
        kind = kinds[0] if kinds else f.type  # `int | None` is read as an int
        if f.default is MISSING:
            parser.add_argument(f.name, type=kind, help=text)
        elif kind is bool:
            parser.add_argument(f"--{f.name.replace('_', '-')}", action="store_true", help=text)
        else:
            several = typing.get_origin(kind) is tuple
            shown = "the task's" if f.default is None else f.default
            parser.add_argument(f"--{f.name.replace('_', '-')}", default=f.default, nargs="+" if several else None,
                                type=typing.get_args(kind)[0] if several else kind, metavar=f.name.upper(),
                                help=f"{text} (default: {shown})")
    values = vars(parser.parse_args(argv))
    return options(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def run_script(main: typing.Callable[[], None]) -> None:
    """Run a script; a user's mistake or a full disk ends it with one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; finished files are kept, start again to go on", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------------------
# As a script: look at the votes


@dataclass
class Options:
    responses: str = field(metadata={"help": "a responses.jsonl file: one problem a line, with its k `responses`"})
    task: str = option("toy", f"whose answers to extract: {', '.join(EXTRACTORS)}")
    limit: int = option(5, "problems to show; 0 shows all")


def show_votes(row: dict, task: str) -> str:
    """A few lines for people: the question, then each answer with its votes and one response that gives it."""
    answers = response_answers(row, task)
    lines = [textwrap.fill(str(row.get("question") or row.get("prompt") or row.get("id")), 110)]
    for answer, votes in Counter(answers).most_common():
        example = " ".join(row["responses"][answers.index(answer)].split())
        label = "no answer" if answer is None else answer
        lines.append(f"  {votes:3d} × {label:<12} {textwrap.shorten(example, 90, placeholder=' …')}")
    return "\n".join(lines)


def main() -> None:
    options = parse_options(Options, __doc__)
    rows = read_jsonl(options.responses, required=("responses",))
    if not rows:
        raise InputError(f"{options.responses}: holds no problem")
    for row in rows[: options.limit or None]:
        print(show_votes(row, options.task) + "\n")
    shares = [max(count_votes(a, options.task), default=0) / max(len(a), 1)
              for a in (response_answers(row, options.task) for row in rows)]
    print(f"{len(rows)} problems, mean share of the most voted answer {100 * sum(shares) / len(shares):.1f} %")


if __name__ == "__main__":
    run_script(main)
