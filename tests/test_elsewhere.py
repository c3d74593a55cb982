"""What other engines sampled is a finished stage: the lines of docs/elsewhere.md, run."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SHIPPED, SMALL, run

import train
from common.files import read_jsonl, write_jsonl
from scpo import encode_pair
from tasks.chat import ChatTokenizer

K = 4


def engine_of(transformers) -> SimpleNamespace:
    """As much of vLLM as the lines use, made of transformers."""

    class LLM:
        def __init__(self, folder):
            self.model = transformers.AutoModelForCausalLM.from_pretrained(folder)

        def generate(self, prompts, params):
            assert params.stop == [] or all(isinstance(stop, str) for stop in params.stop)
            torch.manual_seed(0)
            return [self.answer(prompt["prompt_token_ids"], params) for prompt in prompts]

        def answer(self, ids, params):
            whole = self.model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=True, num_return_sequences=params.n, temperature=params.temperature,
                top_p=params.top_p, top_k=0, max_new_tokens=params.max_tokens,
                eos_token_id=params.stop_token_ids, pad_token_id=params.stop_token_ids[0])
            outputs = []
            for tokens in whole[:, len(ids) :].tolist():
                ends = [i for i, token in enumerate(tokens) if token in params.stop_token_ids]
                reason = "stop" if ends else "length"
                tokens = tokens[: ends[0] + 1] if ends else tokens  # vLLM's hold the stop token
                outputs.append(SimpleNamespace(token_ids=tokens, finish_reason=reason))
            return SimpleNamespace(outputs=outputs)

    return SimpleNamespace(LLM=LLM, SamplingParams=SimpleNamespace)


def lines_of_the_docs(folder) -> str:
    """The lines of docs/elsewhere.md, for the toy task in a folder and fewer responses."""
    text = (ROOT / "docs/elsewhere.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"<!-- vllm -->\n```python\n(.*?)```", text, re.DOTALL)
    for ours, theirs in (("runs/gsm8k/M1", str(folder)), ("gsm8k", "toy"), ("DIR", str(SHIPPED)),
                         ("n=8", f"n={K}"), ("max_tokens=512", "max_tokens=48")):
        assert lines.count(ours) >= 1
        lines = lines.replace(ours, theirs)
    return lines


def test_a_run_goes_on_from_responses_of_another_engine(tmp_path, monkeypatch, capsys):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "vllm", engine_of(transformers))
    how = [*SMALL, "--rounds", "1", "--no-eval", "--out", tmp_path / "run"]
    run(train, *how, "--until", "M1/problems")
    exec(lines_of_the_docs(tmp_path / "run/M1"), {})
    made = (tmp_path / "run/M1/responses.jsonl").read_bytes()
    run(train, *how)
    assert f"{tmp_path / 'run/M1/responses.jsonl'}: kept" in capsys.readouterr().out
    assert (tmp_path / "run/M1/responses.jsonl").read_bytes() == made
    tokenizer = ChatTokenizer(SHIPPED)
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "run/M1/responses.jsonl")}
    pairs = read_jsonl(tmp_path / "run/M1/pairs.jsonl")
    assert len(rows) == 24 and len(pairs) > 3
    for row in rows.values():
        assert len(row["responses"]) == len(row["ended"]) == len(row["response_ids"]) == K
        assert any(row["ended"])
    for pair in pairs:
        ids = rows[pair["id"]]["response_ids"][pair["sample_chosen"]]
        assert encode_pair(pair, tokenizer).chosen == [*ids, tokenizer.eos_id]
    assert (tmp_path / "run/M1/model/model.safetensors").exists()


def test_texts_alone_are_enough(finished, tmp_path):
    """As an API answers: no tokens, and nothing on where a response ended."""
    how = [*SMALL, "--rounds", "1", "--no-eval", "--out", tmp_path / "run"]
    run(train, *how, "--until", "M1/problems")
    rows = []
    for row in read_jsonl(finished / "M1/responses.jsonl"):
        rows.append({name: row[name] for name in ("id", "question", "prompt", "responses")})
    write_jsonl(tmp_path / "run/M1/responses.jsonl", rows)
    run(train, *how)
    for pair in read_jsonl(tmp_path / "run/M1/pairs.jsonl"):
        assert pair["ids_chosen"] is pair["ids_rejected"] is None
    assert (tmp_path / "run/M1/model/model.safetensors").exists()
