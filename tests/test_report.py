"""What README.md and RESULTS.md say is what the result files say, and what the code does."""

import json
import sys

import pytest
from conftest import ROOT

import train
from bench import fuzz, plot, report
from common.cli import InputError, run_script
from common.files import read_json, read_jsonl, write_json, write_jsonl


def line(setting: str, seed: int, **models: dict) -> dict:
    return {"setting": setting, "seed": seed, "results": models}


def scores(greedy: float, **more) -> dict:
    return {"greedy": greedy, "self_consistency": 0.8, "vote_share": 0.6, **more}


# The files


def test_readme_and_results_are_printed_from_the_result_files():
    """`python bench/report.py` would change nothing."""
    for path, text in report.files_with_blocks().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python bench/report.py"


def test_the_example_of_the_readme_is_what_the_shipped_model_does(tmp_path, monkeypatch):
    """The default run again, up to the problem that README.md shows and to its pair."""
    shown = read_json(report.RESULTS / "default.json")
    limit = str(shown["number"] + 1)
    out = str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["train.py", "--limit", limit, "--out", out, "--no-eval",
                                      "--until", "M1/pairs"])
    run_script(train.main)
    row = read_jsonl(tmp_path / "run/M1/responses.jsonl")[-1]
    [pair] = [p for p in read_jsonl(tmp_path / "run/M1/pairs.jsonl") if p["id"] == row["id"]]
    assert row == shown["row"]
    assert pair == shown["pair"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.default_run_blocks({**shown, "row": row, "pair": pair})["example"] in readme


def test_the_example_is_the_first_pair_with_a_weight_below_one(tmp_path):
    rows = [{"id": name, "question": "Q", "responses": ["#### 1"]} for name in "abc"]
    pairs = [{"id": "b", "weight": 1.0}, {"id": "c", "weight": 0.5}]
    write_jsonl(tmp_path / "M1/responses.jsonl", rows)
    write_jsonl(tmp_path / "M1/pairs.jsonl", pairs)
    write_json(tmp_path / "results.json", {"M0": {}})
    run = report.describe_default_run(tmp_path)
    assert (run["number"], run["row"]["id"], run["pair"]["id"]) == (2, "c", "c")


def test_a_block_replaces_what_stands_between_its_marks():
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    once = report.replace_block(text, "one", "| new |")
    assert "old" not in once
    assert once.startswith("a\n<!-- one -->\n\n| new |\n\n<!-- end -->\nb\n<!-- two -->")
    assert once == report.replace_block(once, "one", "| new |")
    with pytest.raises(InputError, match="<!-- three -->"):
        report.replace_block(text, "three", "")


def test_every_table_has_its_marks_in_results_md():
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for name in ("claims", "methods", "written", "thresholds", "judges", "epochs", "options",
                 "control"):
        report.replace_block(text, name, "")


def test_the_table_of_what_was_done_to_break_it(tmp_path, monkeypatch):
    """A row for each kind of input, number of processes and target; none for what was not run."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    counts = {"run": {"refused": 3, "accepted": 2, "hang": 1}, "options": {"refused": 4}}
    counts["options"]["accepted"] = 0
    write_json(tmp_path / "broken.json", {"count": 10, "counts": counts})
    trials = [{"same": True, "exit_code": code} for code in (0, 0, 1)]
    write_json(tmp_path / "kill.json", {"2": trials, "1": [{"same": False, "exit_code": 0}]})
    numbers = {"minutes": 30, "executions": 12345, "coverage": 600, "findings": 0}
    write_json(tmp_path / "fuzz.json", {"extract": numbers})
    rows = report.robustness_table().splitlines()[2:]
    broken = "`python bench/broken.py --count 10` |"
    assert rows[:2] == [
        "| 6 times a broken file of a run that goes on | 3 refused in one line that names it, "
        f"2 did no harm, 1 went wrong | {broken}",
        "| 4 times a broken option | 4 refused in one line that names it, 0 did no harm, "
        f"0 went wrong | {broken}"]
    assert [row.partition(" went on")[0] for row in rows[2:4]] == [
        "| 1 times `kill -9` at a random moment of a run on 1 process | 0",
        "| 3 times `kill -9` at a random moment of a run on 2 processes | 2"]
    assert "12,345 executions, 0 findings" in rows[5] and len(rows) == 6
    write_json(tmp_path / "mutants.json", {"mutants": 300, "killed": 290, "survivors": []})
    assert "300 mistakes" in report.robustness_table() and len(rows) == 6


def test_the_numbers_of_the_fuzzer_are_the_last_that_it_says():
    said = ["#2\tINITED cov: 5 ft: 6 corp: 1/1b\n", "#70\tREDUCE cov: 600 ft: 9\n", "Done 90\n",
            "#91\tDONE   cov: 604 ft: 12 corp: 3/4b exec/s: 567\n", "### End of dictionary ###\n"]
    assert fuzz.numbers_of(said) == {"executions": 91, "coverage": 604}
    assert fuzz.numbers_of([]) == {"executions": 0, "coverage": 0}


# The statistics


def test_a_cell_is_mean_and_standard_error_over_the_seeds():
    assert report.cell([0.5, 0.7]) == "60.0 ± 10.0"  # standard deviation 0.1414, / √2
    assert report.cell([0.5]) == "50.0"


def test_interval_by_hand():
    mean, low, high = report.interval([0.01, 0.03])  # standard error 0.01, times t = 12.71
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - 0.1271, 0.02 + 0.1271))
    assert report.difference([0.01, 0.03]) == "+2.0 [-10.7, +14.7]"


@pytest.mark.parametrize("numbers, above, expected", [
    ([0.04, 0.05, 0.06], 0, "holds"),
    ([-0.04, 0.0, 0.05], 0, "within noise"),
    ([-0.06, -0.05, -0.04], 0, "does not hold"),
    ([-0.011, -0.010, -0.009], 0, "does not hold"),
    ([-0.011, -0.010, -0.009], -0.02, "holds"),
])
def test_a_claim_holds_if_its_whole_interval_does(numbers, above, expected):
    assert report.verdict(numbers, above) == expected


def test_differences_are_paired_by_seed():
    lines = [line("a", 1, M1=scores(0.9)), line("a", 0, M1=scores(0.5)),
             line("b", 0, M1=scores(0.4)), line("b", 1, M1=scores(0.7))]
    assert report.minus(lines, "a M1", "b M1") == pytest.approx([0.1, 0.2])


def test_rows_of_a_table_are_rounds_with_their_gain():
    lines = []
    for seed, greedy in enumerate((0.5, 0.7)):
        m1, m2 = scores(greedy, pairs=10 + seed), scores(0.9, pairs=20)
        lines.append(line("x", seed, M0=scores(0.4), M1=m1, M2=m2))
    table = report.main_table(lines, [("x", "X")]).splitlines()
    assert table[2] == "| X | M0 | 40.0 ± 0.0 |  | 80.0 ± 0.0 | 60.0 ± 0.0 |  |"
    assert table[3] == "| X | M1 | 60.0 ± 10.0 | 20.0 ± 10.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 10 |"
    assert table[4].startswith("| X | M2 | 90.0 ± 0.0 | 30.0 ± 10.0 |")


# A whole study of invented numbers: every table and figure is made


@pytest.fixture(scope="module")
def study_lines() -> list[dict]:
    """Two seeds of every setting; greedy accuracy rises by 0.1 a round."""
    shares = {"right": 0.6, "tied": 0.1, "wrong": 0.3}
    judges = {"votes": shares, "reward": shares,
              "somers_d": {k: [0.5, 0.4] for k in ("2", "4", "8", "16")}}
    quality = {"pairs": 10, "with_gold": 10, "chosen_accuracy": 0.8, "rejected_accuracy": 0.1,
               "margin": 0.7, "rejects_frequent": 0.5}
    more = {"pairs": 10, "quality": quality, "sums": {"doubtful": [1, 4], "others": [9, 10]},
            "written": {"written": 4, "answerable": 2, "right_vote": 1}}
    lines = []
    for setting, (_, _, rounds) in report.SETTINGS.items():
        for seed in (0, 1):
            models = {f"M{t}": scores(0.5 + 0.1 * t + 0.01 * seed, **more)
                      for t in range(rounds + 1)}
            lines.append({**line(setting, seed, **models), "judges": judges})
    return lines


def test_every_table_is_made(study_lines):
    blocks = report.study_blocks(study_lines)
    claim = "M1 above M0, greedy | +19.9; MATH +2.9 | +10.0 [+10.0, +10.0] | holds"
    assert claim in blocks["claims"]
    assert "25.0 % of the doubtful sums right, 90.0 % of the others" in blocks["written"]
    assert "50.0 % well-formed and answerable; on those the majority is right in 50.0 %" in (
        blocks["written"])
    assert "| τ = 0.9k | 10 | 80.0 ± 0.0 |" in blocks["thresholds"]
    assert "| of accuracy, given votes | 0.40 | 0.40 | 0.40 | 0.40 |" in blocks["judges"]
    assert "| ScPO, third round on the test questions | M3 |" in blocks["methods"]


def test_figures_are_drawn_from_the_numbers(study_lines, tmp_path):
    pytest.importorskip("matplotlib")
    from bench import figures

    figures.draw(study_lines, tmp_path / "f")
    drawn = {path.name: path.read_text() for path in (tmp_path / "f").iterdir()}
    assert set(drawn) == {"story.svg", "methods.svg", "consistency.svg", "ordering.svg",
                          "thresholds.svg"}
    assert all("</svg>" in svg for svg in drawn.values())


# bench/plot.py


def test_any_run_is_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    step = {"loss": 0.5, "chosen_logp": -1.0, "grad_norm": 1.0}  # LMSI: nothing is rejected
    write_jsonl(tmp_path / "M1/log.jsonl", [step, step])
    write_json(tmp_path / "results.json", {"M0": scores(0.5), "M1": scores(0.6)})
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    run_script(plot.main)
    assert "</svg>" in (tmp_path / "plot.svg").read_text()
    assert "plot.svg: written" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        run_script(plot.main)
    assert exit_.value.code == 2
    assert "give a run's folder" in capsys.readouterr().err


def test_without_matplotlib_a_line_says_so(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "results.json", {"M0": scores(0.5)})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bench.figures", raising=False)
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        run_script(plot.main)
    assert "pip install matplotlib" in capsys.readouterr().err


def test_results_are_json_of_plain_values():
    """They are committed: no text of a benchmark's data, no path of a machine."""
    for path in report.RESULTS.iterdir():
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and "/home/" not in text and "/root/" not in text
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(part)
