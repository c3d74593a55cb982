"""Which answer did each response give, and how many responses agree with it?

    python vote.py runs/toy/M1/responses.jsonl              # the votes, problem by problem

The vote function of ScPO (paper, section 2) counts, for each of the k responses y_1 … y_k to a problem, how many end in
the same final answer:   V(y) = Σ_m 1[ans(y_m) = ans(y)].

"No answer" is None from the extractor to the vote: it is never a candidate (V = 0), yet k stays the denominator.
Answers are brought to one canonical spelling before they are counted, so "1,000", "$1000" and "1000.00" are one answer.

Only the standard library is used, here and in tasks/math/formula.py, which reads LaTeX. Because this file imports no
other script, it also holds what all of them share: JSON lines, options from a dataclass, and one-line errors.
"""

import argparse
import gzip
import json
import os
import re
import sys
import textwrap
import typing
import zlib
from collections import Counter
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from pathlib import Path

from tasks.math.formula import LONGEST as LONGEST_FORMULA
from tasks.math.formula import canonical_formula

# ---------------------------------------------------------------------------------------------------------------------
# Extraction: text → canonical answer or None

NUMBER = re.compile(r"[-−+]?\s?\\?\$?\s?[-−]?\s?(?=\.?\d)"
                    r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)?(?:\.\d++)?(?:/\d++)?+")  # 1,000  -18  $18.50  .5  3/4
BOX = re.compile(r"\\(?:boxed|fbox)\s*+")
ANSWER_FIELD = re.compile(r'"answer"\s*+:\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",}\]]++))')  # of an answer given as JSON
ANSWER_PHRASE = re.compile(r"(?im)(?:\banswer\b[^.:\n]{0,60}?(?:\bis\b|:)|^A:)\s*+:?\s*+([^\n]++)")
LONGEST = 40  # characters; no benchmark has such a number, and a runaway string of digits must not cost quadratic time


def canonical_number(text: str) -> str | None:
    """One spelling per value, to six decimals: "$1,000.50" → "1000.5", "18.00" → "18", "3/4" → "0.75"; else None."""
    digits = re.sub(r"[\s,$\\+]", "", text).replace("−", "-")
    if not digits or len(digits) > LONGEST:
        return None
    numerator, _, denominator = digits.partition("/")
    try:
        millionths = round(Fraction(numerator) / Fraction(denominator or 1) * 10**6)
    except (ValueError, ZeroDivisionError):
        return None
    whole, rest = divmod(abs(millionths), 10**6)
    return "-" * (millionths < 0) + f"{whole}.{rest:06d}".rstrip("0").rstrip(".")


def first_number(text: str) -> str | None:
    """The number that a statement of an answer gives: its first, or of a calculation the one after the last `=`."""
    found = NUMBER.search(text.rpartition("=")[2]) or NUMBER.search(text)
    return canonical_number(found.group()) if found else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}`, `\\boxed 2` or `\\fbox{…}`; None if it never closes. Linear time."""
    place = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = BOX.match(text, place) if place >= 0 else None
    if opening is None:
        return None
    if text[opening.end() : opening.end() + 1] != "{":
        return re.compile(r"[^\s$.,;{}]*").match(text, opening.end()).group()
    start, depth = opening.end() + 1, 1
    for brace in re.compile(r"(?<!\\)[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def stated_answer(text: str) -> str | None:
    """What a response without its task's mark names as its answer: a JSON field, "the answer is …", or all there is."""
    text = re.split(r"\n[ \t]*+Q:", text, maxsplit=1)[0]  # a base model may run on with another problem
    fields_ = ANSWER_FIELD.findall(text)
    if fields_:
        return fields_[-1][0].replace("\\\\", "\\").replace('\\"', '"') or fields_[-1][1]
    phrases = [phrase for phrase in ANSWER_PHRASE.findall(text) if re.search(r"[\d$\\]", phrase)]
    if phrases:
        return phrases[-1]
    alone = text.strip() if len(text) < LONGEST_FORMULA else ""
    return alone if re.fullmatch(r"(?:\\[a-z]+ |\S)*[A-Za-z0-9](?:\\[a-z]+ |\S)*", alone) else None


def extract_number(text: str) -> str | None:
    """GSM8K: the number of the last `#### N`; else of the last `\\boxed{…}`; else of what the text calls its answer."""
    text = re.split(r"\n[ \t]*+Q:", text, maxsplit=1)[0]  # a base model may run on with another problem
    _, mark, marked = text.rpartition("####")
    if mark and (number := first_number(marked.strip().partition("\n")[0])):
        return number
    if BOX.search(text):
        return first_number((last_boxed(text) or "").replace("{,}", ",").replace("\\!", ""))
    return first_number(stated_answer(text) or "")


def extract_formula(text: str) -> str | None:
    """MATH: the content of the last `\\boxed{…}` in one spelling; without a box, what the text calls its answer."""
    if BOX.search(text):
        answer = last_boxed(text)
    else:
        answer = stated_answer(text)
        if answer and (inline := re.match(r"\s*+\$([^$]++)\$", answer)):  # The answer is $x + 2$ as …
            answer = inline[1]
    return canonical_formula(answer) if answer else None


def extract_table(text: str) -> str | None:
    """ZebraLogic: the `solution` of the last complete top-level JSON object, cells in lower case, as canonical JSON.

    The rule is ZeroEval's (src/evaluation/zebra_grid_eval.py), so that no-answer rates compare: braces are matched
    wherever they stand, line breaks are dropped, nothing is repaired. A bare grid of houses is a solution too, unless
    a stray brace shows that it is a piece of something broken.
    """
    start, depth, whole, stray = 0, 0, None, False
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            start, depth = brace.start() if depth == 0 else start, depth + 1
        elif depth == 0:
            stray = True
        else:
            depth -= 1
            whole = slice(start, brace.end()) if depth == 0 else whole
    try:
        found = json.loads(text[whole].replace("\n", "")) if whole else {}
        bare = found and not stray and all(re.fullmatch(r"House \d+", key) for key in found)
        solution = found if bare else found.get("solution")
        return None if solution is None else json.dumps({"solution": lower_cells(solution)}, sort_keys=True,
                                                        ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def lower_cells(value: typing.Any) -> typing.Any:
    """The cells of a table, compared in lower case and without outer blanks; of a list its first item counts."""
    if isinstance(value, dict):
        return {key: lower_cells(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return lower_cells(value[0]) if value else None
    return None if value is None else str(value).lower().strip()


EXTRACTORS = {"toy": extract_number, "gsm8k": extract_number, "wordproblems": extract_number, "math": extract_formula,
              "zebralogic": extract_table}


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
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="\n") as file:
            lines = file.read().split("\n")  # not splitlines: U+2028 may stand inside a text
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
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
    question = str(row.get("question") or row.get("prompt") or row.get("id"))
    lines = [textwrap.fill(textwrap.shorten(question, 500, placeholder=" …"), 110)]
    for answer, votes in Counter(answers).most_common():
        example = " ".join(row["responses"][answers.index(answer)].split())
        label = "no answer" if answer is None else textwrap.shorten(answer, 60, placeholder=" …")
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
