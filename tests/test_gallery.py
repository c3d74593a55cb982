"""The patches of bench/gallery: each applies to the code as it is, and changes what it says."""

import json
import math
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.study import GALLERY as GALLERY_SETTINGS

GALLERY = ROOT / "bench/gallery"
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git, to apply patches")
NAMES = sorted(path.stem for path in GALLERY.glob("*.patch"))

# What the patched code makes of problems and of a loss, printed as JSON. Of 8 responses 4, 2 and 1
# give the answers 1, 2 and 3, and one none; `clear` has 7 to 1, `unclear` 3 to 2, 2 and 1.
PROBE = """
import json, sys
import torch
import train, scpo
from common.options import parse_args
from pathlib import Path

def pairs(answers):
    texts = [f"#### {a}" if a else "none" for a in answers]
    row = {"id": "p", "prompt": "Q", "responses": texts, "ended": [True] * len(texts)}
    args = parse_args(train.options(), ["--tau", "0.5"])
    try:
        made = train.pairs_of_problem(row, None, [0.1, 0.9] + [0.5] * 5 + [0.0], args, 1)
    except scpo.NoPair as reason:
        return str(reason)
    return [[p["answer_chosen"], p.get("answer_rejected", "nothing"), p["weight"]] for p in made]

class Watched:
    folder, asked = Path("run"), {}
    def has(self, name): return True
    def stage(self, name, function, *args, **more):
        self.asked[name] = [function.__name__, str(args[0])]
        return []

train.train_model = lambda *args: None
train.train_round(Path("M1"), parse_args(train.options(), ["--model", "M0"]), Watched(), 2)
losses, *_ = scpo.scpo_loss(*torch.tensor([[-1.0], [-4.0], [-2.0], [-3.0], [2.0], [1.0]]), 0.4, 0.0)
print(json.dumps({
    "split": pairs(["1"] * 4 + ["2"] * 2 + ["3", None]),
    "clear": pairs(["1"] * 7 + ["2"]),
    "unclear": pairs(["1"] * 3 + ["2"] * 2 + ["3"] * 2 + ["4"]),
    "stages": Watched.asked, "loss": losses.item()}))
"""
SCPO = {
    "split": [["1", None, 0.5]], "clear": [["1", "2", 0.75]], "unclear": "below tau",
    "loss": math.log(1 + math.exp(-0.8)),  # β · (1 + 1) = 0.8
}
ONE = [["1", "nothing", 0.5]]
MINUS = [["2", "nothing", -0.5], ["2", "nothing", -0.5], ["3", "nothing", -0.5]]
CHANGES = {
    "all-pairs": {"split": [["1", "2", 0.25], ["1", "3", 0.375], ["1", None, 0.5]]},
    "band": {"clear": "too easy"},
    "below-tau": {"unclear": [["1", "4", 0.25]]},
    "confidence": {"split": [["1", None, 1.0]], "clear": [["1", "2", 1.0]],
                   "unclear": [["1", "4", 1.0]]},
    # ln 8 - (4 ln 4 + 2 ln 2) / 8 = 1.213 nats for 4, 2, 1, 1 votes; of ln 8 = 2.079
    "entropy-weight": {"split": [["1", None, pytest.approx(1 - 1.2130 / 2.0794, abs=1e-4)]],
                       "clear": [["1", "2", pytest.approx(1 - 0.3768 / 2.0794, abs=1e-4)]]},
    "fixed-teacher": {},
    "ipo": {"loss": 0.09},  # (0.8 - 0.5)²
    "policy-gradient": {
        "split": [*ONE * 4, *MINUS, [None, "nothing", -0.5]],
        "clear": [*[["1", "nothing", 0.125]] * 7, ["2", "nothing", -0.875]],
        "unclear": [*[["1", "nothing", 0.625]] * 3, *[["2", "nothing", -0.375]] * 2,
                    *[["3", "nothing", -0.375]] * 2, ["4", "nothing", -0.375]]},
    "random-nll": {},
    "runner-up": {"split": [["1", "2", 0.25]]},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict]:
    """What each patched copy of the code makes, and what the code itself does."""
    results = {}
    for name in [*NAMES, ""]:
        code = tmp_path_factory.mktemp("code") / "scpo"
        ignored = shutil.ignore_patterns(".*", "runs", "tests", "bench", "docs", "__pycache__")
        shutil.copytree(ROOT, code, ignore=ignored)
        if name:
            subprocess.run(["git", "apply", "-p0", str(GALLERY / f"{name}.patch")], cwd=code,
                           check=True)
        done = subprocess.run([sys.executable, "-c", PROBE], cwd=code, capture_output=True,
                              text=True)
        assert done.returncode == 0, (name, done.stderr[-2000:])
        results[name] = json.loads(done.stdout.splitlines()[-1])
    return results


@needs_git
def test_the_code_itself(found):
    result = found[""]
    stages = result.pop("stages")
    assert result == {**SCPO, "loss": pytest.approx(SCPO["loss"])}
    assert stages["M2/responses.jsonl"] == ["make_responses", "M1"]
    assert "M2/rewards.jsonl" not in stages


@needs_git
@pytest.mark.parametrize("name", NAMES)
def test_a_patch_applies_and_changes_what_it_says_and_nothing_else(found, name):
    result, expected = found[name], {**SCPO, **CHANGES[name]}
    stages = result.pop("stages")
    teacher = "M0" if name == "fixed-teacher" else "M1"
    assert stages["M2/responses.jsonl"] == ["make_responses", teacher]
    assert ("M2/rewards.jsonl" in stages) == (name == "confidence")
    if name == "random-nll":
        for problem in ("split", "clear", "unclear"):
            [[_, rejected, weight]] = result.pop(problem)
            assert (rejected, weight) == ("nothing", 1.0)
            del expected[problem]
    assert result == {**expected, "loss": pytest.approx(expected["loss"])}


def test_every_patch_is_a_setting_of_the_study():
    assert sorted(GALLERY_SETTINGS) == sorted(CHANGES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_small_and_says_what_it_is(name):
    text = (GALLERY / f"{name}.patch").read_text(encoding="utf-8")
    head, _, diff = text.partition("\n---")
    inserted = [line for line in diff.splitlines() if line.startswith("+") and line[:3] != "+++"]
    assert len(inserted) <= 15
    assert "\n\n    " in head and "Expected: " in head  # a formula, and what one expects to see
