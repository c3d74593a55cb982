"""ZebraLogic's puzzles (Lin et al., arXiv 2502.01100): the form to fill in, tables, right cells.

The rules are those of the benchmark's own evaluation, ZeroEval (github.com/WildEval/ZeroEval), so
that numbers compare. A normalized table is the text {"solution": {"House 1": {"Name": "eric", …},
…}}, with sorted keys and cells in lower case.
"""

import json
import re
from typing import Any


def table_header(row: dict) -> Any:
    """The names of a puzzle's columns, beside the puzzle or in its (perhaps blanked) solution."""
    solution = row.get("solution")
    if row.get("header") or not isinstance(solution, dict):
        return row.get("header")
    return solution.get("header")


def json_form(problem: dict) -> str:
    """ZeroEval's JSON to fill in: a row of blanks per house, a cell per attribute of the puzzle."""
    houses, attributes = int(problem["size"].split("*")[0]), problem["header"][1:]
    blanks = {f"House {i + 1}": dict.fromkeys(attributes, "___") for i in range(houses)}
    return json.dumps({"reasoning": "___", "solution": blanks}, indent=4)


def extract_table(text: str) -> str | None:
    """The `solution` of the last complete top-level JSON object, as a normalized table.

    The rule is ZeroEval's (src/evaluation/zebra_grid_eval.py), so that no-answer rates compare:
    braces are matched wherever they stand, line breaks are dropped, nothing is repaired. A bare
    grid of houses, for which the benchmark's first prompt asked, is a solution too, unless a stray
    brace shows that it is a piece of something broken.
    """
    start, depth, whole, stray = 0, 0, None, False
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            if depth == 0:
                start = brace.start()
            depth += 1
        elif depth == 0:
            stray = True
        else:
            depth -= 1
            if depth == 0:
                whole = text[start : brace.end()]
    if whole is None:
        return None
    try:
        found = json.loads(whole.replace("\n", ""))
        bare = found and not stray and all(re.fullmatch(r"House \d+", key) for key in found)
        solution = found if bare else found.get("solution")
        table = {"solution": lower_cells(solution)}
        normalized = json.dumps(table, sort_keys=True, ensure_ascii=False)
        normalized.encode()  # half a surrogate pair is JSON, but no text
        return None if solution is None else normalized
    except (ValueError, RecursionError):
        return None


def lower_cells(value: Any) -> Any:
    """Cells in lower case, without outer blanks; of a list its first item counts."""
    if isinstance(value, dict):
        return {key: lower_cells(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return lower_cells(value[0]) if value else None
    return None if value is None else str(value).lower().strip()


def gold_table(solution: Any) -> str | None:
    """The normalized table of a puzzle's solution, unless it is blanked.

    solution: {"header": ["House", …], "rows": [["1", …], …]}, or a normalized table.
    """
    if isinstance(solution, dict):
        header, rows = solution.get("header"), solution.get("rows")
        if not isinstance(header, list) or not isinstance(rows, list):
            return None
        houses = {}
        for row in rows:
            if not isinstance(row, list) or len(row) != len(header):
                return None
            houses[f"House {row[0]}"] = dict(zip(header[1:], row[1:]))
        solution = json.dumps({"solution": houses})
    table = extract_table(solution) if isinstance(solution, str) else None
    return table if is_filled(table) else None


def is_filled(table: str | None) -> bool:
    """Whether there is a table with something in every cell: k blank forms must not win a vote."""
    if table is None or '"___"' in table:
        return False
    houses = json.loads(table)["solution"]
    if not isinstance(houses, dict) or not houses:
        return False
    return all(isinstance(row, dict) and row and all(row.values()) for row in houses.values())


def filled_cells(table: str | None) -> dict[tuple[str, str], str]:
    """The cells of a normalized table that hold something, by (house, attribute)."""
    houses = json.loads(table)["solution"] if table else {}
    cells = {}
    for house, row in houses.items() if isinstance(houses, dict) else ():
        for attribute, cell in row.items() if isinstance(row, dict) else ():
            if cell:
                cells[house, attribute] = cell
    return cells


def right_cells(answer: str | None, gold: str) -> tuple[int, int]:
    """How many cells of the gold table an answer has right, and how many there are."""
    given, wanted = filled_cells(answer), filled_cells(gold)
    return sum(given.get(place) == cell for place, cell in wanted.items()), len(wanted)


def is_easy(gold: str) -> bool:
    """ZeroEval's split of October 2024: 280 of its 1,000 puzzles are easy."""
    houses = len(json.loads(gold)["solution"])
    attributes = len(filled_cells(gold)) // houses
    return houses == 2 or (houses, attributes) in ((3, 2), (3, 3))


def rephrased_puzzle(written: str, source: dict) -> dict | None:
    """The puzzle in triple quotes, and the new shape of its table; None if it is malformed.

    written: the reply, with a `New Attribute Map: {"old": "new"}`. source: what it rephrases.
    """
    mapped = re.search(r"New Attribute Map:\s*+(\{[^{}]*+\})", written)
    quoted = written.split('"""')
    if mapped is None or len(quoted) < 3:
        return None
    try:
        names = json.loads(mapped[1].replace("'", '"'))
    except ValueError:
        return None
    for old, new in names.items():
        if old not in source["header"] or not isinstance(new, str) or not new.strip():
            return None
    header = [names.get(attribute, attribute) for attribute in source["header"]]
    if not names or len(set(header)) < len(header):  # two columns of one name
        return None
    return {"question": quoted[-2].strip(), "size": source["size"], "header": header}
