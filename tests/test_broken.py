"""Broken inputs of bench/broken.py, a fixed choice; and whether it would see what is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / "bench"))

import broken  # noqa: E402

import vote  # noqa: E402


def test_broken_inputs_are_refused_in_one_line_or_do_no_harm(tmp_path):
    """In a process of its own: each case forks, which a process that has trained should not."""
    command = [sys.executable, "bench/broken.py", "--seed", "7", "--count", "40"]
    process = subprocess.run([*command, "--out", str(tmp_path / "b.json")], cwd=ROOT, text=True,
                             capture_output=True)
    assert process.returncode == 0, process.stdout + process.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["wrong"] == []
    assert sum(sum(counts.values()) for counts in result["counts"].values()) == 40
    assert len(result["counts"]) == 5  # every kind of input


# What a script might do instead, and what it is called.
DEFECTS = {
    "traceback": lambda: 1 / 0,
    "many lines": lambda: refuse("two\nlines of r.jsonl"),
    "not named": lambda: refuse("no file is named"),
    "control characters": lambda: refuse("r.jsonl: \x1b[2J"),
    "changed": lambda: open("mine.txt", "w").close(),
    "refused": lambda: refuse("r.jsonl: is broken"),
    "accepted": lambda: print("all is well"),
    "hang": lambda: time.sleep(9),
    "hang ": lambda: sum(range(10**12)),  # busy for good
}


def refuse(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


@pytest.mark.parametrize("name", DEFECTS)
def test_what_is_wrong_is_seen(tmp_path, monkeypatch, name):
    (tmp_path / "case").mkdir()
    (tmp_path / "case/mine.txt").write_text("mine")
    monkeypatch.setattr(vote, "main", DEFECTS[name])
    monkeypatch.setattr(broken, "WAIT", 1)
    monkeypatch.setattr(broken, "SECONDS", 1)
    case = broken.Case("responses", vote, [], ["r.jsonl"])
    assert broken.outcome(case, tmp_path / "case")[0] == name.strip()


def texts_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]


def test_a_case_can_be_made_again_by_its_number(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        broken.write_jsonl(tmp_path / name / "responses.jsonl", [{"responses": ["a"] * 3}] * 3)
        for number in range(20):
            path = tmp_path / name / f"{number}.jsonl"
            path.write_bytes((tmp_path / name / "responses.jsonl").read_bytes())
            broken.break_file(path, broken.random.Random(number))
    made = {name: texts_of(tmp_path / name) for name in ("a", "b")}
    assert made["a"] == made["b"] and len(set(made["a"])) > 10


def test_a_case_that_went_wrong_ends_with_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(broken, "make_inputs", lambda folder: None)
    monkeypatch.setattr(broken, "make_case", lambda *args: broken.Case("run", vote, [], ["x"]))
    monkeypatch.setattr(broken, "outcome", lambda *args: ("hang", "x"))
    with pytest.raises(SystemExit) as exit_:
        run(broken, "--count", "2", "--out", tmp_path / "b.json")
    assert exit_.value.code == 1
    assert "2 of 2 cases went wrong" in capsys.readouterr().out
