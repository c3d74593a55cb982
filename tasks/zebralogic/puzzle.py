"""ZebraLogic's puzzles (Lin et al., arXiv 2502.01100): the form to fill in, the table in an answer, its right cells.

The rules are those of the benchmark's own evaluation, ZeroEval (github.com/WildEval/ZeroEval), so that numbers compare.
A normalized table is the text {"solution": {"House 1": {"Name": "eric", …}, …}}, keys sorted, cells in lower case.
"""

import json
import re
import typing


def table_header(row: dict) -> typing.Any:
    """The names of a puzzle's columns, beside the puzzle or in its (perhaps blanked) solution."""
    solution = row.get("solution")
    return row.get("header") or (solution.get("header") if isinstance(solution, dict) else None)


def json_form(problem: dict) -> str:
    """ZeroEval's JSON to fill in: a row of blanks per house, a cell per attribute of the puzzle."""
    houses, attributes = int(problem["size"].split("*")[0]), problem["header"][1:]
    blanks = {f"House {i + 1}": dict.fromkeys(attributes, "___") for i in range(houses)}
    return json.dumps({"reasoning": "___", "solution": blanks}, indent=4)


def extract_table(text: str) -> str | None:
    """ZebraLogic: the `solution` of the last complete top-level JSON object, cells in lower case, as normalized JSON.

    The rule is ZeroEval's (src/evaluation/zebra_grid_eval.py), so that no-answer rates compare: braces are matched
    wherever they stand, line breaks are dropped, nothing is repaired. A bare grid of houses, for which the benchmark's
    first prompt asked, is a solution too, unless a stray brace shows that it is a piece of something broken.
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
        table = json.dumps({"solution": lower_cells(solution)}, sort_keys=True, ensure_ascii=False)
        table.encode()  # half a surrogate pair is JSON, but no text
        return None if solution is None else table
    except (ValueError, RecursionError):
        return None


def lower_cells(value: typing.Any) -> typing.Any:
    """The cells of a table, compared in lower case and without outer blanks; of a list its first item counts."""
    if isinstance(value, dict):
        return {key: lower_cells(cell) for key, cell in value.items()}
    if isinstance(value, list):
        return lower_cells(value[0]) if value else None
    return None if value is None else str(value).lower().strip()


def gold_table(solution: typing.Any) -> str | None:
    """A puzzle's `{"header": ["House", …], "rows": [["1", …], …]}`, or the normalized table itself, unless blanked."""
    if isinstance(solution, dict):
        header, rows = solution.get("header"), solution.get("rows")
        if not isinstance(header, list) or not isinstance(rows, list) or not all(
                isinstance(row, list) and len(row) == len(header) for row in rows):
            return None
        solution = json.dumps({"solution": {f"House {row[0]}": dict(zip(header[1:], row[1:])) for row in rows}})
    table = extract_table(solution) if isinstance(solution, str) else None
    return table if is_filled(table) else None


def is_filled(table: str | None) -> bool:
    """Whether there is a table with something in every cell: k copies of the blank form must not win a vote."""
    if table is None or '"___"' in table:
        return False
    houses = json.loads(table)["solution"]
    return isinstance(houses, dict) and bool(houses) and all(
        isinstance(row, dict) and row and all(row.values()) for row in houses.values())


def filled_cells(table: str | None) -> dict[tuple[str, str], str]:
    """The cells of a normalized table that hold something, by (house, attribute)."""
    houses = json.loads(table)["solution"] if table else {}
    rows = {house: row for house, row in houses.items() if isinstance(row, dict)} if isinstance(houses, dict) else {}
    return {(house, name): cell for house, row in rows.items() for name, cell in row.items() if cell}


def right_cells(answer: str | None, gold: str) -> tuple[int, int]:
    """How many cells of the gold table an answer has right, and how many there are; what it has beside them is free."""
    given, wanted = filled_cells(answer), filled_cells(gold)
    return sum(given.get(place) == cell for place, cell in wanted.items()), len(wanted)


def rephrased_puzzle(written: str, source: dict) -> dict | None:
    """The puzzle in triple quotes and its table's new shape, from `New Attribute Map: {"old": "new"}`; None without."""
    mapped = re.search(r"New Attribute Map:\s*+(\{[^{}]*+\})", written)
    quoted = written.split('"""')
    try:
        names = json.loads(mapped[1].replace("'", '"')) if mapped else None
    except ValueError:
        names = None
    if not names or len(quoted) < 3 or not all(old in source["header"] and isinstance(new, str) and new.strip()
                                               for old, new in names.items()):
        return None
    header = [names.get(attribute, attribute) for attribute in source["header"]]
    return {"question": quoted[-2].strip(), "size": source["size"], "header": header} \
        if len(set(header)) == len(header) else None


def is_easy(gold: str) -> bool:
    """ZeroEval's split of October 2024: 280 of its 1,000 puzzles are easy."""
    houses = len(json.loads(gold)["solution"])
    attributes = len(filled_cells(gold)) // houses
    return houses == 2 or (houses, attributes) in ((3, 2), (3, 3))
