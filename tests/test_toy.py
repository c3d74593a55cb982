"""The miniature: its splits are apart, its solver is right, and M0 half knows how."""

import json
import re
from pathlib import Path

import pytest

import sample
import vote
from eval import evaluate, gold_answer, score
from tasks.toy import make

TOY = Path(__file__).parent.parent / "tasks/toy"


@pytest.fixture(scope="module")
def files():
    return {name: vote.read_jsonl(TOY / f"{name}.jsonl") for name in ("train", "dev", "test")}


def test_training_questions_come_without_answers(files):
    assert len(files["train"]) >= 1000 and len(files["dev"]) >= 300 and len(files["test"]) >= 1000
    assert all(set(row) == {"id", "question"} for row in files["train"])


def test_gold_answers_are_what_the_solver_says_and_every_equation_holds(files):
    for row in files["dev"] + files["test"]:
        assert gold_answer(row, "toy") == str(make.solve(row["question"]))
        equations = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["answer"])
        assert equations and all({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[o] == int(c)
                                 for a, o, b, c in equations)


def test_no_skeleton_of_dev_or_test_is_in_any_training_set(files):
    """Names, objects, verbs dropped: neither the ScPO questions nor any pre-training document repeats the numbers."""
    skeletons = {name: {make.skeleton(row["question"]) for row in rows} for name, rows in files.items()}
    assert None not in set.union(*skeletons.values())
    assert not skeletons["train"] & skeletons["test"] and not skeletons["train"] & skeletons["dev"]
    assert not skeletons["dev"] & skeletons["test"] and len(skeletons["test"]) == len(files["test"])
    for seed in (0, 1):
        texts = [prompt + text for kind in make.documents(make.Options(seed=seed))[0].values() for prompt, text in kind]
        questions = [q for text in texts for q in re.findall(r"Q: (.*\?)", text)]
        seen = {make.skeleton(q) for q in questions}
        assert len(questions) > 5000 and None not in seen
        assert not seen & (skeletons["test"] | skeletons["dev"])


@pytest.mark.parametrize("question, answer", [
    ("Tom has 31 apples. Tom finds 6. Tom loses 3. How many does Tom have now?", 34),
    ("Tom has 5 bags with 7 apples each. Tom finds 6. How many does Tom have now?", 41),
    ("Tom has 31 apples. Anna finds 6. How many does Tom have now?", None),  # another person
    ("Tom has 3 apples. Tom loses 6. How many does Tom have now?", None),  # fewer than none
    ("Tom has 31 apples. Tom finds 6. How many does Tom have", None),
    ("", None)])
def test_the_solver_is_strict(question, answer):
    assert make.solve(question) == answer


def test_the_shipped_files_are_what_the_script_makes(files):
    for name, problems in make.splits(make.Options()).items():
        assert [(r["id"], r["question"]) for r in files[name]] == [
            (f"{name}-{i}", problem.question()) for i, problem in enumerate(problems)]
    parameters = sum(p.numel() for p in sample.Llama.from_pretrained(TOY / "model").parameters())
    assert json.loads((TOY / "model/config.json").read_text())["model_type"] == "llama" and parameters < 2e6


def test_m0_half_knows_how_and_its_majority_knows_more(files):
    model, text = sample.load_checkpoint(str(TOY / "model"), "auto", "cpu", "float32")
    rows = evaluate(model, text, sample.Task.load("toy"), files["dev"][:300], k=8, temperature=0.7, top_p=0.9,
                    max_new_tokens=64, seed=[0], rows=512, name="")
    result = score(rows, "toy")
    assert 0.35 < result["greedy"] < 0.65  # 40 to 60 on 1,000; three standard errors wider on these 300
    assert result["self_consistency"] > result["greedy"]


def test_m0_writes_new_problems_that_can_be_answered(files):
    model, text = sample.load_checkpoint(str(TOY / "model"), "auto", "cpu", "float32")
    new, _ = sample.write_problems(model, text, sample.Task.load("toy"), files["train"], 200, known=[],
                                   temperature=0.7, top_p=0.9, max_new_tokens=64, seed=[0])
    valid = [p for p in new if make.solve(p["question"]) is not None]
    assert len(valid) >= 0.8 * 200 and len({make.skeleton(p["question"]) for p in valid}) >= 0.9 * len(valid)
