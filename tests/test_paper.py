"""Every command that docs/paper.md gives for the paper's tables and figures goes through.

On tiny models. Which words a model writes is scripted here, since a random one never reaches an
answer. All else is real: command lines, stages and their files, voting, judging, training,
checkpoints, the selection of the epoch, evaluation.
"""

import json
import random
import re
import shlex

import pytest
from conftest import BOS, EOS, ROOT, random_llama, randomise, tiny_config, toy_tokenizer
from test_reward import MARKS, OBJECTIVES

import eval as evaluation
import sample
import train
from bench import analyse
from common.cli import run_script
from common.files import write_json, write_jsonl
from common.options import load_checkpoint
from common.reward_model import RewardModel
from model import Config
from tasks.chat import ChatTokenizer

SMALL = "--limit 6 --k 4 --epochs 1 --max-new-tokens 40 --micro-batch-size 4 --batch-size 4".split()
SCRIPTS = {"train.py": train, "eval.py": evaluation, "bench/analyse.py": analyse}


def commands() -> list[str]:
    """The command lines of docs/paper.md, with the shell's variables filled in."""
    text = (ROOT / "docs/paper.md").read_text()
    block = re.search(r"<!-- paper commands -->\n```bash\n(.*?)```", text, re.DOTALL)[1]
    variables, lines = {}, []
    for line in block.replace("\\\n", " ").splitlines():
        line = line.partition("  #")[0]
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        assignment = re.fullmatch(r'(\w+)="(.*)"', line)
        if assignment:
            variables[assignment[1]] = assignment[2]
        elif line.startswith("python "):
            lines.append(line)
    return lines


def scripted(tokenizer: ChatTokenizer):
    """In place of sample.generate: responses and new problems as a model might write them."""

    def generate(model, prompts, k, params, *, seed, first_sample=0, **options):
        rows = []
        for prompt in prompts:
            text = tokenizer.tokenizer.decode(prompt, skip_special_tokens=False)
            rows.append([respond(text, [*seed, first_sample + i]) for i in range(k)])
        return rows

    def respond(prompt: str, seed: list[int]) -> sample.Response:
        written = reply(prompt, random.Random(f"{prompt} {seed}"))
        ids = tokenizer.tokenizer.encode(written, add_special_tokens=False).ids
        return sample.Response(ids, True)

    return generate


def reply(prompt: str, rng: random.Random) -> str:
    answer = rng.choice("4456")
    if "Write one more" in prompt:
        apples, more = rng.randint(1, 99), rng.randint(1, 99)
        return f" Ann has {apples} apples and buys {more}. How many does she have?"
    if "Attributes to Change" in prompt:
        puzzle = f"Two houses, puzzle {rng.random()}."
        return f'New Attribute Map: {{"Drink": "Food"}}\n"""\n{puzzle}\n"""'
    if "puzzle" in prompt:
        second = "Food" if '"Food": "___"' in prompt else "Drink"
        houses = {}
        for i in (1, 2):
            houses[f"House {i}"] = {"Name": rng.choice(["Eric", "Ann"]), second: "tea"}
        return json.dumps({"reasoning": "so", "solution": houses})
    if "boxed" in prompt:
        return rf"The final answer is $\boxed{{{answer}}}$"
    return f"So. #### {answer}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with every model and data file that the commands name."""
    folder, tokenizer = tmp_path_factory.mktemp("paper"), toy_tokenizer(*MARKS)
    raw = tiny_config(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=8192)
    judge = RewardModel(Config.from_dict(raw | OBJECTIVES), raw | OBJECTIVES)
    randomise(judge)
    models = {"LLAMA3": random_llama(raw), "INSTRUCT": random_llama(raw, 1), "ARMORM": judge}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save(str(folder / name / "tokenizer.json"))
        settings = {"bos_token": BOS, "eos_token": EOS}
        if name != "LLAMA3":
            settings["chat_template"] = "{{ bos_token }}<|start_header_id|>"
        write_json(folder / name / "tokenizer_config.json", settings)
    for part in ("seeds", "dev", "test"):
        gsm8k, math = [], []
        for i in range(6):
            question = f"Tom has {i} apples and buys {len(part)}. How many does he have?"
            gsm8k.append({"question": question, "answer": f"So.\n#### {4 + i % 2}"})
            math.append({"problem": question, "solution": rf"So $\boxed{{{4 + i % 2}}}$."})
        write_jsonl(folder / f"gsm8k-{part}.jsonl", gsm8k)
        write_jsonl(folder / f"math-{part}.jsonl", math)
    solution = {"header": ["House", "Name", "Drink"],
                "rows": [["1", "Eric", "tea"], ["2", "Ann", "tea"]]}
    puzzles = []
    for i in range(5):
        puzzle = f"Two houses, puzzle {i}."
        puzzles.append({"id": f"p{i}", "size": "2*2", "puzzle": puzzle, "solution": solution})
    write_jsonl(folder / "puzzles.jsonl", puzzles)
    return folder


def test_every_command_of_the_paper_goes_through(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sample, "generate", scripted(ChatTokenizer(workplace / "LLAMA3")))
    outputs = {}
    for line in commands():
        _, script, *argv = shlex.split(line)
        if script == "train.py":
            written = "0" if "--new-problems 0" in line else "3"
            argv = [*SMALL, *argv, "--new-problems", written]
        monkeypatch.setattr("sys.argv", [script, *argv])
        run_script(SCRIPTS[script].main)
        outputs[line] = capsys.readouterr().out
    assert len(outputs) == 18

    def shown(part: str) -> str:
        return next(output for line, output in outputs.items() if part in line)

    assert "M2" in shown("runs/gsm8k/scpo") and "M3" in shown("--rounds 3")
    assert "cells" in shown("runs/zebra/scpo")
    assert "margin" in shown("--pairs")
    assert "Somers' D at k = 16" in shown("bench/analyse.py gsm8k-m0.jsonl")
    assert "by reward" in shown("gsm8k-m0.jsonl --task gsm8k --reward-model")
    assert "3 of 3 written and kept" in shown("runs/math/scpo")
    assert "3 of 3 written and kept" in shown("runs/zebra/lmsi")
    for line in outputs:  # every run ended in a checkpoint that loads
        for folder in re.findall(r"--out (runs/\S+)", line):
            last = max((workplace / folder).glob("M*/model"))
            load_checkpoint(last)
