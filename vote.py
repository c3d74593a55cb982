"""Which answer did each response give, and how many responses agree with it? Step 3 of scpo.py.

    python vote.py runs/toy/M1/responses.jsonl              # the votes, problem by problem

The vote function of ScPO (paper, section 2) counts, for each of the k responses y_1 … y_k to a
problem, how many end in the same final answer:

    V(y) = Σ_m 1[ans(y_m) = ans(y)]

An answer is brought to one spelling when it is extracted, so "1,000", "$1000" and
"1000.00" are one answer. "No answer" is None: it has no votes and is never chosen,
though it may be rejected, and k stays the denominator.

Only the standard library is used, here and in what reads numbers
(tasks/gsm8k/number.py), LaTeX (tasks/math/formula.py) and the tables of puzzles
(tasks/zebralogic/puzzle.py).
"""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from common.cli import ArgumentParser, InputError, integer, printable, run_script
from common.files import read_responses
from tasks.gsm8k.number import first_number, normalize_number
from tasks.math.answer import BOX, boxed_answers, extract_formula, stated_answer
from tasks.math.formula import normalize_formula
from tasks.zebralogic.puzzle import extract_table, is_filled


def count_votes(answers: Sequence[str | None], k: int | None = None) -> list[int]:
    """V(y) of each response: how many of the first k, or of all, give its answer; 0 for None."""
    ballots = Counter(answers[:k])
    return [0 if answer is None else ballots[answer] for answer in answers]


def response_answers(row: dict, task: str) -> list[str | None]:
    """The answers with which the k responses of a line of responses.jsonl vote.

    A response that was cut off at the token limit has none. Nor has a table with
    blank cells: else k copies of the form to fill in would be a unanimous vote.
    """
    answers = []
    for text, ended in zip(row["responses"], ended_flags(row)):
        answer = extract_answer(text, task) if ended else None
        if task == "zebralogic" and not is_filled(answer):
            answer = None
        answers.append(answer)
    return answers


def ended_flags(row: dict) -> list[bool]:
    """Whether each response came to its end; files made elsewhere may not say."""
    return row.get("ended") or [True] * len(row["responses"])


# --------------------------------------------------------------------------------------------
# Extraction: from a response to its answer


def extract_answer(text: str, task: str) -> str | None:
    """The final answer of a response, in one spelling per value, or None if it has none.

    Raises InputError for a task without an extractor.
    """
    if task not in EXTRACTORS:
        known = ", ".join(EXTRACTORS)
        raise InputError(f"task {task!r} has no answer extractor; known: {known}")
    if task != "zebralogic":  # its benchmark's rule takes a response as it is
        text = final_part(text)
    return EXTRACTORS[task](text)


# A base model may run on with another question: these end its sampling at once.
QUESTION_LINES = ("Q:", "Question:", "Problem:", "### Question", "### Problem")
TURN_MARKS = ("<|im_start|>", "<|start_header_id|>", "<|endoftext|>")
NEXT_QUESTION = (*("\n" + line for line in QUESTION_LINES), *TURN_MARKS)
# In a finished text of any model: the answer ends there, see `final_part`.
LINE_OF_NEXT_QUESTION = re.compile(
    rf"\n[ \t]*+(?:{'|'.join(QUESTION_LINES)})|{'|'.join(map(re.escape, TURN_MARKS))}")
ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
MAX_MARKS = 10  # of the last #### lines, those in which a number is looked for
HEADING = re.compile(r"(?i)\s*(?:step|part|case|check)\b|\s*\d+[.)]\s+[a-z]")  # #### 2. Why


def final_part(text: str) -> str:
    """What of a response may hold its answer: no thoughts, no other question that it makes up."""
    thoughts, closed, rest = text.rpartition("</think>")
    if closed:
        text = rest
    elif "<think>" in text:  # cut off in its thoughts
        text = text.partition("<think>")[0]
    # Reasoning holds a digit or LaTeX. A question in front of the first one is the given question,
    # restated; one behind it is another.
    begun = re.search(r"[\d\\]", text)
    if begun and (mark := LINE_OF_NEXT_QUESTION.search(text, begun.end())):
        text = text[: mark.start()]
    tags = ANSWER_TAG.findall(text) if "<answer>" in text else []
    return tags[-1] if tags else text


def extract_number(text: str) -> str | None:
    """GSM8K: of the last `#### N` or `\\boxed{…}`, whichever is later; else of the stated answer.

    A #### line that looks like a heading comes last.
    """
    last_box = max((box.start() for box in BOX.finditer(text)), default=-1)
    marked = text.split("####")[1:][-MAX_MARKS:] if text.rfind("####") > last_box else []
    lines = [part.strip().partition("\n")[0] for part in reversed(marked)]
    headings = [line for line in lines if HEADING.match(line)]
    for line in lines:
        if line not in headings and (number := first_number(line)):
            return number
    boxes = boxed_answers(text)
    answer = boxes[-1:] if boxes is not None else [stated_answer(text) or ""]
    for statement in (*answer, *headings):
        if number := first_number(statement):
            return number
    return None


EXTRACTORS = {
    "toy": extract_number,
    "gsm8k": extract_number,
    "wordproblems": extract_number,
    "math": extract_formula,
    "zebralogic": extract_table,
}


def is_equiv(a: str | None, b: str | None, task: str) -> bool:
    """Whether two answers as people write them are equal. None equals nothing, not even None.

    For notebooks and tests. Votes and grades compare extracted answers, which have one spelling,
    by `==`.
    """
    return a is not None and normalize(a, task) == normalize(b, task)


def normalize(answer: str | None, task: str) -> str | None:
    """The spelling that `extract_answer` gives to an answer; what is no answer stays as it is."""
    spell = {extract_number: normalize_number, extract_formula: normalize_formula}
    extractor = EXTRACTORS[task]
    if answer is None or extractor not in spell:
        return answer
    return spell[extractor](answer) or answer


# --------------------------------------------------------------------------------------------
# As a script: look at the votes


def show_votes(row: dict, task: str) -> str:
    """The question, then each answer with its votes and one response that gives it."""
    answers = response_answers(row, task)
    question = str(row.get("question") or row.get("prompt") or row.get("id"))
    shortened = textwrap.shorten(printable(question), 500, placeholder=" …")
    lines = [textwrap.fill(shortened, 100)]
    for answer, votes in Counter(answers).most_common():
        label = textwrap.shorten(printable(answer or "no answer"), 60, placeholder=" …")
        example = " ".join(row["responses"][answers.index(answer)].split())
        example = textwrap.shorten(printable(example), 80, placeholder=" …")
        lines.append(f"  {votes:3d} × {label:<12} {example}")
    return "\n".join(lines)


def show_pair(pair: dict) -> str:
    lines = [f"    w {pair['weight']:.2f}"]
    for side in ("chosen", "rejected"):
        if pair[side] is not None:
            text = printable(" ".join(pair[side].split()))
            lines.append(f"      {side}, {pair[f'votes_{side}']} votes: {text}")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("responses", help="a responses.jsonl: one problem a line, with its k `responses`")
    add("--task", default="toy", choices=EXTRACTORS, help="whose answers to extract")
    add("--limit", type=integer(0), default=5, help="problems to show; 0 shows all")
    args = parser.parse_args()
    rows = read_responses(args.responses)
    for row in rows[: args.limit or None]:
        print(show_votes(row, args.task) + "\n")
    total = 0.0
    for row in rows:
        votes = count_votes(response_answers(row, args.task))
        total += max(votes) / len(votes)
    share = 100 * total / len(rows)
    print(f"{len(rows)} problems, mean share of the most voted answer {share:.1f} %")


if __name__ == "__main__":
    run_script(main)
