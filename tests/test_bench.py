"""The study's bookkeeping and its statistics; its numbers are measured, not tested."""

import json
import sys
from dataclasses import replace

import pytest
from test_train import SMALL, run, stage_files

import train
from bench import study
from vote import InputError, run_script


def test_settings_are_options_of_train():
    assert study.described("coin")[1] == ["--supervision", "coin"]
    assert study.described("lr-1e-4") == ("--lr 1e-4", ["--lr", "1e-4"], 2)
    for setting in ("nope", "lr-", "seed-3"):
        with pytest.raises(InputError, match=setting):
            study.described(setting)


def test_rows_are_means_and_standard_errors_over_the_runs(tmp_path):
    for seed, greedy in enumerate((0.5, 0.7)):
        (tmp_path / str(seed)).mkdir()
        entry = {"self_consistency": 0.8, "vote_share": 0.6, "pairs": 10 + seed}
        (tmp_path / str(seed) / "results.json").write_text(json.dumps({
            "M0": {**entry, "greedy": 0.4}, "M1": {**entry, "greedy": greedy}, "M2": {**entry, "greedy": 0.9}}))
    rows = study.rows_of("x", [tmp_path / "0", tmp_path / "1"])
    assert rows[0] == "| x | M0 | 40.0 ± 0.0 |  | 80.0 ± 0.0 | 60.0 ± 0.0 |  |"
    assert rows[1] == "| x | M1 | 60.0 ± 10.0 | 20.0 ± 10.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 10 |"  # sd 0.1414 / √2
    assert study.cell([0.5]) == "50.0"


def test_interval_by_hand_and_the_three_verdicts():
    mean, low, high = study.interval([0.01, 0.03])  # sd 0.01414 / √2 = 0.01, times 12.71
    assert (mean, low, high) == pytest.approx((0.02, 0.02 - 0.1271, 0.02 + 0.1271))
    assert study.difference([0.01, 0.03]) == "+2.0 [-10.7, +14.7]"
    up, flat, down = [0.04, 0.05, 0.06], [-0.04, 0.0, 0.05], [-0.06, -0.05, -0.04]
    assert [study.verdict(d) for d in (up, flat, down)] == ["holds", "within noise", "does not hold"]
    near = [-0.011, -0.010, -0.009]
    assert [study.verdict(near, bound) for bound in (0, -0.02)] == ["does not hold", "holds"]


def test_differences_are_paired_by_seed(tmp_path):
    runs = {}
    for setting, greedy in (("a", (0.5, 0.9)), ("b", (0.4, 0.7))):
        runs[setting] = [tmp_path / f"{setting}-{seed}" for seed in (0, 1)]
        for folder, value in zip(runs[setting], greedy):
            folder.mkdir()
            (folder / "results.json").write_text(json.dumps({"M1": {"greedy": value}}))
    assert study.minus(runs, ("a", "M1"), ("b", "M1")) == pytest.approx([0.1, 0.2])


def test_every_setting_is_a_command_line_of_train():
    options = study.Options(out="OUT")
    for setting in study.SETTINGS:
        parsed = study.parse_options(train.Options, "", study.arguments(options, setting, 3))
        assert parsed.seed == 3 and parsed.out == f"OUT/{setting}-3" and parsed.rounds == study.SETTINGS[setting][2]
        assert parsed.model == ("OUT/scpo-3/M2/model" if setting == "test-queries" else options.model)


def test_a_run_that_shares_the_first_samples_is_the_run_it_would_have_been(tmp_path, monkeypatch):
    options = study.Options(out=str(tmp_path))
    arguments = lambda setting: [*study.arguments(options, setting, 0), *SMALL, "--rounds", "1"]
    study.prepare(replace(options, settings=("scpo",)))
    for setting in ("scpo", "gold"):
        run(monkeypatch, train, *arguments(setting))
    (tmp_path / "gold-0").rename(tmp_path / "unshared")
    study.share(options, "gold", 0, [*arguments("gold"), "--k", "3"])  # other samples: nothing to share
    assert not (tmp_path / "gold-0").exists()
    study.share(options, "gold", 0, arguments("gold"))
    assert {p.name for p in (tmp_path / "gold-0/M1").iterdir()} == {"problems.jsonl", "responses.jsonl"}
    run(monkeypatch, train, *arguments("gold"))
    assert stage_files(tmp_path / "gold-0") == stage_files(tmp_path / "unshared")
    before = stage_files(tmp_path / "gold-0")
    study.share(options, "gold", 0, arguments("gold"))  # nothing of a run that exists is touched
    assert stage_files(tmp_path / "gold-0") == before


def test_tables_stand_between_their_marks():
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\n<!-- end -->\n"
    once = study.replace_block(text, "one", "| new |")
    assert "old" not in once and once == study.replace_block(once, "one", "| new |")
    assert once.startswith("a\n<!-- one -->\n\n| new |\n\n<!-- end -->\nb\n<!-- two -->")
    with pytest.raises(InputError, match="<!-- three -->"):
        study.replace_block(text, "three", "")
    results = (study.ROOT / "RESULTS.md").read_text()
    assert all(study.replace_block(results, name, "") for name in study.MARKS)


@pytest.mark.parametrize("argv, needle", [
    (["--seeds", "11"], "--seeds 11"), (["--problems", "tset"], "--problems tset"), (["--settings", "nope"], "nope"),
    (["--settings", "scpo", "--results", "RESULTS.md"], "are left out"), (["--results", "nowhere.md"], "no such file"),
    (["--results", "RESULTS.md", "--seeds", "1"], "--seeds 2")])
def test_a_mistake_shows_before_the_runs(argv, needle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(study.ROOT)
    monkeypatch.setattr(sys, "argv", ["study.py", *argv, "--out", str(tmp_path / "study")])
    with pytest.raises(SystemExit) as exit_:
        run_script(study.main)
    assert exit_.value.code == 2 and needle in capsys.readouterr().err and not (tmp_path / "study").exists()


def test_runs_of_another_m0_are_not_mixed_in(tmp_path):
    study.prepare(study.Options(out=str(tmp_path), settings=()))
    with pytest.raises(InputError, match="choose another folder"):
        study.prepare(study.Options(out=str(tmp_path), settings=(), problems="dev"))


def test_figures_are_drawn_from_the_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    from bench.figures import draw

    runs = {setting: [tmp_path] for setting in study.SETTINGS}
    numbers = lambda folders, t, name: [0.5 + 0.1 * int(t[1:]), 0.55]
    shares = {"right": 0.6, "tied": 0.1, "wrong": 0.3}
    thresholds = {0.1: ([0.6, 0.7], 800), 0.5: ([0.7], 400)}
    draw(numbers, runs, [{"votes": shares, "reward": shares}], thresholds, tmp_path / "f")
    drawn = {path.name: path.read_text() for path in (tmp_path / "f").iterdir()}
    assert set(drawn) == {"story.svg", "methods.svg", "consistency.svg", "ordering.svg", "thresholds.svg"}
    assert all("</svg>" in svg for svg in drawn.values())
