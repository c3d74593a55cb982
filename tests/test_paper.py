"""Every command that the README gives for the paper's tables and figures goes through, on tiny models.

Which words a model writes is scripted here, since a random one never reaches an answer; all else is real: the command
lines, the stages and their files, voting, judging, training, checkpoints, the choice of the epoch, evaluation.
"""

import json
import random
import re
import shlex

import pytest
import torch
from conftest import BOS, EOS, ROOT, randomise, random_llama, tiny_config, toy_tokenizer
from test_reward import MARKS, OBJECTIVES

import eval as evaluation
import sample
import train
import vote
from eval import RewardModel
from model import Config

SMALL = "--limit 6 --k 4 --epochs 2 --max-new-tokens 40 --micro-batch 4 --batch-size 4".split()


def commands() -> list[str]:
    """The README's command lines, with the shell's variables filled in."""
    block = re.search(r"<!-- paper commands -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    variables, lines = {}, []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line.partition("  #")[0])
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
        elif line.startswith("python "):
            lines.append(line)
    return lines


def scripted(text: sample.Text):
    """In place of sample.generate: responses and new problems as a model might write them, by prompt and sample."""
    def generate(model, prompts, k, *, seed, first_sample=0, **how):
        return [[respond(text.tokenizer.decode(prompt, skip_special_tokens=False), [*seed, first_sample + i])
                 for i in range(k)] for prompt in prompts]

    def respond(prompt: str, seed: list[int]) -> sample.Response:
        rng = random.Random(f"{prompt} {seed}")
        answer = rng.choice("4456")
        if "Write one more" in prompt:
            written = f" Ann has {rng.randint(1, 99)} apples and buys {rng.randint(1, 99)}. How many does she have?"
        elif "Attributes to Change" in prompt:
            written = f'New Attribute Map: {{"Drink": "Food"}}\n"""\nTwo houses, puzzle {rng.random()}.\n"""'
        elif "puzzle" in prompt:
            header = ["Name", "Food" if '"Food": "___"' in prompt else "Drink"]
            houses = {f"House {i}": dict(zip(header, (rng.choice(["Eric", "Ann"]), "tea"))) for i in (1, 2)}
            written = json.dumps({"reasoning": "so", "solution": houses})
        else:
            written = rf"The final answer is $\boxed{{{answer}}}$" if "boxed" in prompt else f"So. #### {answer}"
        return sample.Response(text.tokenizer.encode(written, add_special_tokens=False).ids, True)

    return generate


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with every model and data file that the README's commands name."""
    folder, tokenizer = tmp_path_factory.mktemp("paper"), toy_tokenizer(*MARKS)
    raw = tiny_config(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=8192)
    judge = RewardModel(Config.from_dict(raw | OBJECTIVES), raw | OBJECTIVES)
    randomise(judge)
    for name, model in (("LLAMA3", random_llama(raw)), ("INSTRUCT", random_llama(raw, 1)), ("ARMORM", judge)):
        model.save_pretrained(folder / name)
        tokenizer.save(str(folder / name / "tokenizer.json"))
        settings = {"bos_token": BOS, "eos_token": EOS} | ({} if name == "LLAMA3" else {"chat_template": "llama3"})
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings))
    for part in ("seeds", "dev", "test"):
        question = lambda i, part=part: f"Tom has {i} apples and buys {len(part)}. How many does he have?"
        vote.write_jsonl(folder / f"gsm8k-{part}.jsonl", [
            {"question": question(i), "answer": f"So.\n#### {4 + i % 2}"} for i in range(6)])
        vote.write_jsonl(folder / f"math-{part}.jsonl", [
            {"problem": question(i), "solution": rf"So $\boxed{{{4 + i % 2}}}$."} for i in range(6)])
    rows = [["1", "Eric", "tea"], ["2", "Ann", "tea"]]
    vote.write_jsonl(folder / "puzzles.jsonl", [{
        "id": f"p{i}", "size": "2*2", "puzzle": f"Two houses, puzzle {i}.",
        "solution": {"header": ["House", "Name", "Drink"], "rows": rows}} for i in range(5)])
    return folder


def test_every_command_of_the_readme_goes_through(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    text = sample.Text(workplace / "LLAMA3")
    monkeypatch.setattr(sample, "generate", scripted(text))
    torch.manual_seed(0)
    done = []
    for line in commands():
        _, script, *argv = shlex.split(line)
        if script == "train.py":
            argv = [*SMALL, *argv, "--new-problems", "0" if "--new-problems 0" in line else "3"]
        monkeypatch.setattr("sys.argv", [script, *argv])
        vote.run_script((train if script == "train.py" else evaluation).main)
        done.append((line, capsys.readouterr().out))
    assert len(done) == 17
    shown = lambda part: next(out for line, out in done if part in line)
    assert "M2" in shown("runs/gsm8k/scpo") and "M3" in shown("--rounds 3") and "cells" in shown("runs/zebra/scpo")
    assert "margin" in shown("--pairs") and "Somers' D at k = 16" in shown("--k 16")
    assert "by reward" in shown("--responses")
    assert "3 of 3 written and kept" in shown("runs/math/scpo") and "3 of 3" in shown("runs/zebra/lmsi")
    for line, _ in done:  # every run ended in a checkpoint that loads
        for folder in re.findall(r"--out (runs/\S+)", line):
            last = max((workplace / folder).glob("M*/model"))
            sample.load_checkpoint(str(last), "auto", "cpu", "float32")
