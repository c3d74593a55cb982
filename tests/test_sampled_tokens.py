"""A model is trained on the tokens that it sampled, not on another spelling of their text."""

import json
from pathlib import Path

import pytest
from conftest import SMALL, random_llama, run, tiny_config
from tokenizers import (Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

import eval as evaluation
import sample
import tasks.chat
import train
from common.files import read_jsonl, write_jsonl
from common.options import load_checkpoint
from common.runs import read_stage
from sample import SamplingParams, answer_problems
from scpo import encode_pair
from tasks.task import Task, read_problems

EOS = "</s>"
TEXT = ["Q: Tom has 3 apples and finds 14 more.\nA: 3 + 14 = 17. #### 17", "the then there this",
        "How many books does Ann give to Tom? She gives him 20. ½ é"] * 20


def byte_level() -> Tokenizer:
    """As Llama 3's, Qwen's and SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2's: a space before the first word, BOS from the tokenizer, bytes in need."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<s>", EOS, "<unk>", *in_bytes]
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(
        learnt["vocab"], [tuple(merge) for merge in learnt["merges"]], unk_token="<unk>",
        byte_fallback=True))
    tokenizer.add_special_tokens(["<s>", EOS, "<unk>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


@pytest.fixture(params=[byte_level, metaspace], ids=lambda make: make.__name__)
def folder(request, tmp_path) -> Path:
    """A random model, whose samples are no usual spelling of any text."""
    tokenizer = request.param()
    size = tokenizer.get_vocab_size()
    random_llama(tiny_config(vocab_size=size, max_position_embeddings=256)).save_pretrained(
        tmp_path / "model")
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    return tmp_path / "model"


def answer(folder: Path, monkeypatch, task: str = "toy") -> tuple:
    """The tokenizer, what the model drew, and the lines that were made of it."""
    model, tokenizer = load_checkpoint(folder)
    drawn, generate = [], sample.generate

    def keep(*args, **kwargs):
        drawn.extend(generate(*args, **kwargs))
        return drawn

    monkeypatch.setattr(sample, "generate", keep)
    problems = read_problems(Task.load("toy").defaults["problems"], Task.load("toy"), 8)
    rows = answer_problems(model, tokenizer, Task.load(task), problems, 8,
                           SamplingParams(1.0, 1.0, 40), seed=[0])
    return tokenizer, drawn, rows


def test_what_was_sampled_is_what_is_trained_on(folder, tmp_path, monkeypatch):
    """Through the files, as a run reads them; most texts alone would be encoded otherwise."""
    tokenizer, drawn, rows = answer(folder, monkeypatch)
    write_jsonl(tmp_path / "responses.jsonl", rows)
    same, pairs, eos = [], [], tokenizer.eos_id
    for row in read_stage(tmp_path / "responses.jsonl", None):
        pairs.append(train.pair_line(row, ["1"] * 8, [1] * 8, 0, 7, 1.0))
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    for pair, responses in zip(read_stage(tmp_path / "pairs.jsonl", None), drawn, strict=True):
        data = encode_pair(pair, tokenizer)
        for tokens, response in ((data.chosen, responses[0]), (data.rejected, responses[7])):
            assert tokens == response.tokens + [eos] * response.ended
        same.append(encode_pair(without_ids(pair), tokenizer).chosen == data.chosen)
    assert same.count(False) >= 4


def without_ids(pair: dict) -> dict:
    return {name: value for name, value in pair.items() if not name.startswith("ids_")}


def test_a_response_cut_at_a_stop_string_keeps_the_tokens_before_it(folder, monkeypatch):
    """If the cut is between two tokens; else its text is encoded."""
    monkeypatch.setattr(tasks.chat, "NEXT_QUESTION", ["e", "1", "o"])
    tokenizer, drawn, rows = answer(folder, monkeypatch, "gsm8k")
    kinds = set()
    for row, responses in zip(rows, drawn, strict=True):
        for text, ids, response in zip(row["responses"], row["response_ids"], responses):
            whole = tokenizer.decode(response.tokens)
            assert whole.startswith(text)
            if ids is not None:
                assert tokenizer.decode(ids) == text
                assert response.tokens[: len(ids)] == ids
            cut = len(text) < len(whole)
            assert cut or ids == response.tokens
            kinds.add((cut, ids is None))
    assert kinds >= {(True, True), (True, False)}


def test_text_from_elsewhere_is_encoded(toy_checkpoint):
    _, tokenizer = load_checkpoint(toy_checkpoint)
    pair = {"id": "7", "prompt": "Q: How many?", "chosen": " 7 left", "ended_chosen": True,
            "rejected": " 8", "ended_rejected": False, "weight": 1.0}
    expected = tokenizer.encode_plain(" 7 left") + [tokenizer.eos_id], tokenizer.encode_plain(" 8")
    for ids in ({}, {"ids_chosen": None, "ids_rejected": None}):
        data = encode_pair({**pair, **ids}, tokenizer)
        assert (data.chosen, data.rejected) == expected
    data = encode_pair({**pair, "rejected": None, "ids_rejected": None}, tokenizer)
    assert data.rejected is None


# --------------------------------------------------------------------------------------------
# In the files of a run


def test_ids_stand_at_the_end_of_a_line(finished):
    for round_ in ("M1", "M2"):
        for row in read_jsonl(finished / round_ / "responses.jsonl"):
            names = list(row)
            last = ["response_ids", "extra_response_ids"]
            assert names[-2:] == last or names[-1] == last[0]
            assert len(row["response_ids"]) == len(row["responses"])
            assert len(row.get("extra_response_ids", [])) == len(row.get("extra_responses", []))
        for pair in read_jsonl(finished / round_ / "pairs.jsonl"):
            assert list(pair)[-2:] == ["ids_chosen", "ids_rejected"]
    assert "_ids" not in (finished / "M1/eval_responses.jsonl").read_text()


def test_pairs_hold_the_ids_of_their_responses(finished):
    rows = {row["id"]: row for row in read_jsonl(finished / "M1/responses.jsonl")}
    extra = 0
    for pair in read_jsonl(finished / "M1/pairs.jsonl"):
        row = rows[pair["id"]]
        ids = row["response_ids"] + row.get("extra_response_ids", [])
        for side in ("chosen", "rejected"):
            assert pair[f"ids_{side}"] == ids[pair[f"sample_{side}"]]
            extra += pair[f"sample_{side}"] >= 4
    assert extra > 0


def test_ids_of_problems_are_texts_everywhere(tmp_path):
    """So that a column has one type, whatever the problems' own file says."""
    problems = [{**row, "id": number} for number, row in
                enumerate(read_jsonl(Task.load("toy").defaults["test"])[:24])]
    problems[3]["id"] = "x"
    write_jsonl(tmp_path / "p.jsonl", problems)
    files = ["--problems", tmp_path / "p.jsonl", "--test", tmp_path / "p.jsonl"]
    how = [*SMALL, *files, "--new-problems", "0", "--rounds", "1", "--out", tmp_path / "run"]
    run(train, *how, "--until", "M1/responses")
    path = tmp_path / "run/M1/responses.jsonl"  # with numbers, as older runs and others write them
    write_jsonl(path, [{**row, "id": number if number != 3 else "x"}
                       for number, row in enumerate(read_jsonl(path))])
    run(train, *how)
    for name in ("M1/problems", "M1/pairs", "M1/reference", "M0/eval_responses"):
        assert {type(row["id"]) for row in read_jsonl(tmp_path / f"run/{name}.jsonl")} == {str}


@pytest.mark.parametrize(
    "ids", [7, [[1]], [["1"]] * 4, [[-1]] * 4, [[True]] * 4, [1] * 4], ids=repr)
def test_ids_that_are_none_are_refused(ids, tmp_path, error_of):
    rows = [{"id": "a", "question": "?", "responses": ["#### 1"] * 4, "response_ids": ids}]
    write_jsonl(tmp_path / "r.jsonl", rows)
    message = error_of(evaluation, "--responses", tmp_path / "r.jsonl")
    assert "line 1: `response_ids` must be token numbers" in message


def test_ids_beyond_the_model_are_refused(finished, tmp_path, error_of):
    out = ["--until", "M1/pairs", "--no-eval", "--out", tmp_path / "run"]
    run(train, *SMALL, "--from", finished / "M1/pairs.jsonl", *out)
    path = tmp_path / "run/M1/pairs.jsonl"
    pairs = read_jsonl(path)
    pairs[0]["ids_chosen"] = [5000]
    write_jsonl(path, pairs)
    answered = path.with_name("responses.jsonl")
    rows = read_jsonl(answered)
    for row in rows:
        if row["id"] == pairs[0]["id"]:
            row["response_ids"][pairs[0]["sample_chosen"]] = [5000]
    write_jsonl(answered, rows)
    message = error_of(train, *SMALL, "--no-eval", "--out", tmp_path / "run")
    assert f"problem {pairs[0]['id']}: names token 5000, the model knows only 175" in message
