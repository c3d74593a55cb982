"""Which answer did each response give, and how many responses agree with it?

    python vote.py runs/toy/M1/responses.jsonl              # the votes, problem by problem

The vote function of ScPO (paper, section 2) counts, for each of the k responses y_1 … y_k to a problem, how many end in
the same final answer:   V(y) = Σ_m 1[ans(y_m) = ans(y)].

"No answer" is None from the extractor to the vote: it is never a candidate (V = 0), yet k stays the denominator.
Answers are brought to one canonical spelling before they are counted, so "1,000", "$1000" and "1000.00" are one answer.

Only the standard library is used, here and in what reads LaTeX (tasks/math/formula.py) and tables (tasks/zebralogic/
puzzle.py). Because this file imports no other script, it also holds what all share: JSON lines, options, errors.
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
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from pathlib import Path

from tasks.math.formula import LONGEST_FORMULA, canonical_formula
from tasks.zebralogic.puzzle import extract_table, is_filled

# ---------------------------------------------------------------------------------------------------------------------
# Extraction: text → canonical answer or None

NUMBER = re.compile(r"[-−–+]?\s?\\?\$?\s?[-−–]?\s?(?=\.?\d)(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)?(?:\.\d++)?"
                    r"(?:\s?/\s?\d++)?+")  # 1,000  -18  $18.50  .5  3/4
BOX = re.compile(r"\\(?:boxed|fbox)\s*+")
MIXED = re.compile(r"(?<![\d.,/])(\d{1,9})(?:\s?\\[dt]?frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}|"
                   r" (\d{1,9})/(\d{1,9})(?!\d))")  # 2\frac{1}{2}  2 1/2
PLAIN_TEXT = [(re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ])(?=\d{3})"), ""),  # 1{,}000  1,\!000  1\,000
              (re.compile(r"\\[dt]?frac\s?\{(-?\d++)\}\s?\{(\d++)\}"), r"\1/\2"),
              (re.compile(r"\\[dt]?frac(\d)(\d)"), r"\1/\2"),
              (re.compile(r"(?<=\d) \([^()]*\)"), "")]  # 42 (because 7 = 1 week)
NEXT_QUESTION = re.compile(r"\n[ \t]*+Q:")
ANSWER_FIELD = re.compile(r'"answer"\s*+:\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",}\]]++))')  # of an answer given as JSON
ANSWER_PHRASE = re.compile(r"(?im)(?:\banswer\b[^.:\n]{0,60}?(?:\bis\b|:)|^A:)\s*+:?\s*+([^\n]++)")
LONGEST_NUMBER, LONGEST_STATEMENT = 40, 1000  # characters; runaway digits must not cost quadratic time
MOST_MARKS = 10  # of the last #### lines, those looked at for a number


def canonical_number(text: str) -> str | None:
    """One spelling per value, to six decimals: "$1,000.50" → "1000.5", "18.00" → "18", "3/4" → "0.75"; else None."""
    digits = re.sub(r"[\s,$\\+]", "", text).replace("−", "-").replace("–", "-")
    if not digits or len(digits) > LONGEST_NUMBER:
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
    text = MIXED.sub(mixed_number, re.split(r"\.\s", text[:LONGEST_STATEMENT])[0])
    for pattern, plain in PLAIN_TEXT:
        text = pattern.sub(plain, text)
    before, _, after = text.rpartition("=")
    if re.search(r"\d\s*[-+*/×÷]\s*\d", after) and NUMBER.search(before):  # 72 = 12 * 6
        after = before.rpartition("=")[2]
    found = NUMBER.search(after) or NUMBER.search(text)
    return canonical_number(found.group()) if found else None


def mixed_number(match: re.Match) -> str:
    """2 1/2 and 2\\frac{1}{2} as 5/2; two numbers that are no mixed number stay."""
    whole, above, below = (int(group) for group in match.groups() if group)
    return f"{whole * below + above}/{below}" if 0 < above < below else match.group()


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}`, `\\boxed 2` or `\\fbox{…}`; None if it never closes. Linear time."""
    place = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = BOX.match(text, place) if place >= 0 else None
    if opening is None:
        return None
    if text[opening.end() : opening.end() + 1] != "{":
        return re.compile(r"[^\s$.,;{}]*").match(text, opening.end()).group()
    start, depth = opening.end() + 1, 1
    for token in re.compile(r"\\.|[{}]", re.S).finditer(text, start):  # an escaped brace is none
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return text[start : token.start()]
    return None


def stated_answer(text: str) -> str | None:
    """What a response without its task's mark names as its answer: a JSON field, "the answer is …", or all there is."""
    given = ANSWER_FIELD.findall(text)
    if given:
        quoted, bare = given[-1]
        escaped = re.sub(r'\\(?:[\\"]|u[0-9a-fA-F]{4})', "", quoted)
        if "\\" not in escaped:  # else it is TeX that nobody escaped
            quoted = json.loads(f'"{quoted}"', strict=False).encode(errors="ignore").decode()  # no half surrogates
        return quoted or bare
    phrases = [phrase for phrase in ANSWER_PHRASE.findall(text) if re.search(r"[\d$\\]", phrase)]
    if phrases:
        return phrases[-1]
    alone = text.strip() if len(text) < LONGEST_FORMULA else ""
    return alone if re.fullmatch(r"(?:\\[a-z]+ |\S)*[A-Za-z0-9](?:\\[a-z]+ |\S)*", alone) else None


def extract_number(text: str) -> str | None:
    """GSM8K: the number of the last `#### N`; else of the last `\\boxed{…}`; else of what the text calls its answer."""
    boxes = [box.start() for box in BOX.finditer(text)]
    if text.rfind("####") > max(boxes, default=-1):  # the later mark counts: #### may also be a heading
        for marked in text.split("####")[1:][: -MOST_MARKS : -1]:
            if number := first_number(marked.strip().partition("\n")[0]):
                return number
    return first_number((last_boxed(text) if BOX.search(text) else stated_answer(text)) or "")


def extract_formula(text: str) -> str | None:
    """MATH: the content of the last `\\boxed{…}` in one spelling; without a box, what the text calls its answer."""
    if BOX.search(text):
        answer = last_boxed(text)
    else:
        sentence = re.split(r"\.\s", stated_answer(text) or "")[0]
        answer = re.split(r"\bis\b", sentence)[-1]  # Final answer: the largest n is 34
        if answer and (inline := re.match(r"\s*+\$([^$]++)\$(?!.*\$)", answer)):  # The answer is $x + 2$ as …
            answer = inline[1]
    return canonical_formula(answer) if answer else None


EXTRACTORS = {"toy": extract_number, "gsm8k": extract_number, "wordproblems": extract_number, "math": extract_formula,
              "zebralogic": extract_table}


def extract_answer(text: str, task: str) -> str | None:
    """The canonical final answer of a response, or None if it has none. Raises InputError for an unknown task."""
    if task not in EXTRACTORS:
        raise InputError(f"task {task!r} has no answer extractor; known: {', '.join(EXTRACTORS)}")
    if task != "zebralogic":  # a base model may run on with another problem
        text = NEXT_QUESTION.split(text, maxsplit=1)[0]
    return EXTRACTORS[task](text)


def canonical(answer: str | None, task: str) -> str | None:
    """The canonical spelling of an answer as somebody wrote it; a canonical one stays as it is."""
    spell = {extract_number: canonical_number, extract_formula: canonical_formula}.get(EXTRACTORS[task], str)
    return None if answer is None else spell(answer) or answer


def same_answer(a: str | None, b: str | None, task: str) -> bool:
    """Whether two answers are equal, however spelt. None equals nothing, not even None."""
    return a is not None and canonical(a, task) == canonical(b, task)


# ---------------------------------------------------------------------------------------------------------------------
# Voting


def count_votes(answers: Sequence[str | None], task: str, k: int | None = None) -> list[int]:
    """V(y) of each response (section 2): how many of the first k, or of all, give its answer; 0 for None."""
    spelt = [canonical(answer, task) for answer in answers]
    ballots = Counter(spelt[:k])
    return [0 if answer is None else ballots[answer] for answer in spelt]


def response_answers(row: dict, task: str) -> list[str | None]:
    """The answers with which the k responses of a line of `responses.jsonl` vote.

    None for a response that was cut off at the token limit, and for a table with cells left blank: k copies of the
    form to fill in would be the clearest vote of all.
    """
    answers = [extract_answer(text, task) if ended else None for text, ended in zip(row["responses"], was_ended(row))]
    return [answer if task != "zebralogic" or is_filled(answer) else None for answer in answers]


def was_ended(row: dict) -> list[bool]:
    """Whether each response came to its end; files made elsewhere may not say."""
    return row.get("ended") or [True] * len(row["responses"])


# ---------------------------------------------------------------------------------------------------------------------
# What every script shares


class InputError(Exception):
    """A user's mistake: one line that names the file, line or option and says what to do about it."""


def read_jsonl(path: str | Path, required: tuple[str, ...] = (),
               complaint: typing.Callable[[dict], str | None] = lambda row: None) -> list[dict]:
    """The objects of a JSON-lines file (or .gz), each with the `required` fields.

    complaint: says what is wrong with a row, or None. Raises InputError naming the file and the line.
    """
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
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); mend or delete the line") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, found a {type(row).__name__}")
        absent = [name for name in required if name not in row]
        if absent:
            raise InputError(f"{path}, line {number}: has no {', '.join(map(repr, absent))}; it has {', '.join(row)}")
        if wrong := complaint(row):
            raise InputError(f"{path}, line {number}: {wrong}")
        rows.append(row)
    return rows


def read_json(path: Path) -> dict:
    """The JSON object in a file, {} if there is no such file. Raises InputError where it is broken."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_responses(path: str | Path) -> list[dict]:
    """The lines of a `responses.jsonl`, made by this project or elsewhere; `id` is the line's number if it has none."""
    def complaint(row: dict) -> str | None:
        texts, ended = row["responses"], row.get("ended")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            return f"`responses` must be a list of k texts, found {str(texts)[:40]!r}"
        if not isinstance(row.get("id", ""), (str, int)):
            return "`id` must be a text or a number"
        if ended is not None and (not isinstance(ended, list) or [type(e) for e in ended] != [bool] * len(texts)):
            return f"`ended` must say true or false for each of the {len(texts)} responses"
        return None if isinstance(row.get("greedy", ""), str) else "`greedy` must be one text"

    rows = read_jsonl(path, ("responses",), complaint)
    if not rows:
        raise InputError(f"{path}: holds no problem")
    return [{"id": number, **row} for number, row in enumerate(rows)]


def write_text(path: str | Path, text: str) -> None:
    """Write a file that is either whole or absent: beside its place first, flushed to disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink(missing_ok=True)
        raise
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
        flag, text = f"--{f.name.replace('_', '-')}", f.metadata["help"].replace("%", "%%")
        kind = typing.get_args(f.type)[0] if f.default is None else f.type  # `int | None` is read as an int
        if f.default is MISSING:
            parser.add_argument(f.name, type=kind, help=text)
        elif kind is bool:
            parser.add_argument(flag, action="store_true", help=text)
        else:
            several, shown = typing.get_origin(kind) is tuple, "" if f.default is None else f" (default: {f.default})"
            parser.add_argument(flag, default=f.default, nargs="+" if several else None, metavar=f.name.upper(),
                                type=typing.get_args(kind)[0] if several else kind, help=text + shown)
    values = vars(parser.parse_args(argv))
    return options(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def check_options(options: typing.Any, rules: dict[str, tuple[typing.Callable, str]]) -> None:
    """Refuse option values that break their rule, (test of one value, what it must be). None is for a default."""
    for name, (good, rule) in rules.items():
        value = getattr(options, name)
        if not all(map(good, value if isinstance(value, tuple) else [] if value is None else [value])):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"--{name.replace('_', '-')} {shown}: {rule}")


def run_script(main: typing.Callable[[], None]) -> None:
    """Run a script; a user's mistake, a full disk or memory ends it with one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        print(f"error: out of memory ({str(error).splitlines()[0]}); lower --rows when it samples, --micro-batch when "
              "it trains, or --max-new-tokens", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; files that were finished are kept", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------------------
# As a script: look at the votes


@dataclass
class Options:
    responses: str = option(MISSING, "a responses.jsonl file: one problem a line, with its k `responses`")
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
    check_options(options, {"limit": (lambda v: v >= 0, "0 shows all"),
                            "task": (lambda v: v in EXTRACTORS, f"choose from {', '.join(EXTRACTORS)}")})
    rows = read_responses(options.responses)
    for row in rows[: options.limit or None]:
        print(show_votes(row, options.task) + "\n")
    shares = [max(count_votes(a, options.task)) / len(a) for a in (response_answers(r, options.task) for r in rows)]
    print(f"{len(rows)} problems, mean share of the most voted answer {100 * sum(shares) / len(shares):.1f} %")


if __name__ == "__main__":
    run_script(main)
