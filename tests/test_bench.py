"""The study's bookkeeping; its numbers are measured, not tested."""

import json

import pytest

from bench import study
from vote import InputError


def test_settings_are_options_of_train():
    assert study.described("coin")[1] == ["--supervision", "coin"]
    assert study.described("lr-1e-4") == ("--lr 1e-4", ["--lr", "1e-4"], 2)
    for setting in ("nope", "lr-", "seed-3"):
        with pytest.raises(InputError, match=setting):
            study.described(setting)


def test_rows_are_means_and_standard_errors_over_the_runs(tmp_path):
    for run, greedy in enumerate((0.5, 0.7)):
        (tmp_path / str(run)).mkdir()
        entry = {"self_consistency": 0.8, "vote_share": 0.6, "pairs": 10 + run}
        (tmp_path / str(run) / "results.json").write_text(json.dumps({
            "M0": {**entry, "greedy": 0.4}, "M1": {**entry, "greedy": greedy}, "M2": {**entry, "greedy": 0.9}}))
    rows = study.rows_of("x", [tmp_path / "0", tmp_path / "1"])
    assert rows[0] == "| x | M0 | 40.0 ± 0.0 |  | 80.0 ± 0.0 | 60.0 ± 0.0 |  |"
    assert rows[1] == "| x | M1 | 60.0 ± 10.0 | 20.0 ± 10.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 10 |"  # sd 0.1414 / √2
    assert study.cell([0.5]) == "50.0"
