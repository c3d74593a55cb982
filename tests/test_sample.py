"""Sampling does not depend on company; tokens follow the truncated distribution; text, problems and their errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BOS, random_llama, tiny_config, toy_tokenizer
from tqdm import tqdm

import sample
from sample import Response, Task, Text, generate, next_token, prefill, uniforms_of
from vote import InputError

MODEL = random_llama(tiny_config())
PROMPTS = [[0, 5, 9], [0, 7, 7, 30, 41, 2, 8, 60, 11], [0]]
STOPS = range(1, 9)  # an eighth of the vocabulary: responses end at all kinds of steps, and rows are dropped
TASK = Task(name="toy", prompt="Q: {question}\nA:", chat="{question}", example="Q: {question}\n",
            new_problem="{examples}Q:", defaults={}, stop=("\nQ:",))
HOW = dict(temperature=0.7, top_p=0.9, max_new_tokens=8, seed=[0])
BELOW_ONE = 1 - 2**-24  # the largest uniform there is


def run(prompts=PROMPTS, k=4, **options) -> list[list[Response]]:
    return generate(MODEL, prompts, k, **{"max_new_tokens": 10, "temperature": 1.0, "stop_ids": STOPS, **options})


# Which tokens


def test_k_rows_equal_k_single_runs():
    together = run(k=4)
    assert len({len(r.tokens) for row in together for r in row}) > 4
    assert together == [[run([p], 1, first_sample=i)[0][0] for i in range(4)] for p in PROMPTS]


def test_samples_depend_on_neither_company_nor_order_nor_rows():
    alone = [run([p])[0] for p in PROMPTS]
    assert run() == alone
    assert run(PROMPTS[::-1]) == alone[::-1]
    assert run(rows=8) == alone


def test_samples_depend_on_seed_round_and_sample_number():
    runs = [run(seed=seed, first_sample=first) for seed, first in [(0, 0), (1, 0), ((0, 1), 0), ((0, 2), 0), (0, 4)]]
    assert all(a[i] != b[i] for n, a in enumerate(runs) for b in runs[:n] for i in range(len(PROMPTS)))
    assert runs[0] == run(seed=0)


def test_a_higher_token_limit_only_continues_responses():
    short, long = run(max_new_tokens=5), run(max_new_tokens=12)
    assert any(not r.ended for row in short for r in row)
    for a, b in zip(sum(short, []), sum(long, []), strict=True):
        assert a == b if a.ended else a.tokens == b.tokens[:5]
    assert (uniforms_of([3], [1, 2], range(2), 5) == uniforms_of([3], [1, 2], range(2), 12)[:, :5]).all()


def test_samples_of_one_prompt_do_not_share_their_first_token():
    flat = random_llama(tiny_config())
    flat.lm_head.weight.data.zero_()
    firsts = [r.tokens[0] for r in generate(flat, [[0, 5]], 64, max_new_tokens=1, temperature=1.0, top_p=1.0)[0]]
    assert 30 <= len(set(firsts)) < 64  # 64 draws of 64 tokens: about 40 distinct


def test_hand_worked_nucleus():
    """Of .5 .3 .15 .05, the likeliest two reach .75; their shares are 5/8 and 3/8."""
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    uniforms = torch.tensor([0.0, 0.624, 0.626, BELOW_ONE])
    assert next_token(logits.expand(4, 4), uniforms, 1.0, 0.75).tolist() == [1, 1, 3, 3]
    assert next_token(logits.expand(4, 4), uniforms, 1.0, 0.01).tolist() == [1, 1, 1, 1]
    assert next_token(logits.expand(4, 4), uniforms, 0.0, 0.75).tolist() == [1, 1, 1, 1]  # greedy


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 1.1, 0.2])
    grid = (torch.arange(2000) + 0.5) / 2000
    counts = next_token(logits.expand(2000, 5), grid, temperature, 1.0).bincount(minlength=5)
    assert (counts - 2000 * torch.softmax(logits / temperature, 0)).abs().max() <= 1


@pytest.mark.parametrize("vocab, spread", [(50, 2.0), (3000, 4.0), (3000, 0.1)])
def test_next_token_equals_a_plain_reference(vocab, spread):
    """Small, peaked and flat vocabularies; the flat one needs far more than the NUCLEUS likeliest tokens."""
    draw = np.random.default_rng(0)
    logits, uniforms, want, sizes = draw.normal(0, spread, (16, vocab)), [], [], []
    for probs in np.exp(logits) / np.exp(logits).sum(-1, keepdims=True):
        ids = np.argsort(-probs)
        sizes.append(np.searchsorted(probs[ids].cumsum(), 0.9) + 1)
        share = probs[ids[: sizes[-1]]] / probs[ids[: sizes[-1]]].sum()
        rank = draw.integers(sizes[-1])
        want.append(ids[rank])
        uniforms.append(share[:rank].sum() + share[rank] / 2)
    assert (min(sizes) > sample.NUCLEUS) == (spread == 0.1)
    assert next_token(torch.tensor(logits), torch.tensor(uniforms), 1.0, 0.9).tolist() == want


def test_a_flat_row_changes_no_token_of_the_rows_beside_it():
    """Also among equally likely tokens, of which bfloat16 logits have many."""
    draw = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(64, 3000, generator=draw).mul(3).bfloat16(), torch.rand(64, generator=draw)
    company = next_token(torch.cat((logits, 0 * logits[:1])), torch.cat((uniforms, uniforms[:1])), 1.0, 0.9)
    assert torch.equal(company[:64], next_token(logits, uniforms, 1.0, 0.9))


def test_impossible_tokens_are_never_drawn():
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    logits[:, ::2] = -torch.inf
    for u in (0.0, BELOW_ONE):
        assert (next_token(logits, torch.full((500,), u), 1.0, 1.0) % 2 == 1).all()


# Where responses end


def test_stop_tokens_end_a_response_and_are_not_part_of_it():
    script = np.array([[7, 8, 2, 9], [2, 9, 9, 9], [5, 3, 9, 9], [4, 4, 4, 4], [4, 4, 4, 2]])
    cache, logits = prefill(MODEL, [[0, 5]], 5, 4)
    choose = lambda logits, live, step: torch.tensor(script[live, step])
    got = sample.decode(MODEL, cache, logits, choose, 4, {2, 3}, lambda tokens: False, tqdm(disable=True))
    assert got == [Response([7, 8], True), Response([], True), Response([5], True), Response([4] * 4, False),
                   Response([4] * 3, True)]


def test_stopped_ends_a_response_soon_after_it_says_so():
    free, cut = [sum(run(stop_ids=(), max_new_tokens=16, stopped=s), [])
                 for s in (lambda t: False, lambda t: len(t) > 4)]
    for a, b in zip(cut, free, strict=True):
        assert a.ended and 4 < len(a.tokens) <= 4 + sample.STOP_TEXT_EVERY and a.tokens == b.tokens[: len(a.tokens)]


def test_a_prompt_beyond_the_model_is_refused():
    assert run([[0] * 500], 1, max_new_tokens=12)
    with pytest.raises(InputError, match="500 tokens.*--max-new-tokens"):
        run([[0] * 500], 1, max_new_tokens=13)


# Text


def text_folder(folder, *special, template=False, **files) -> Path:
    toy_tokenizer(*special).save(str(folder / "tokenizer.json"))
    for name, content in {"config": {"eos_token_id": 1}, "tokenizer_config": {"chat_template": ""} if template else {},
                          **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


CHATML, LLAMA3 = ("<|im_start|>", "<|im_end|>"), ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.mark.parametrize("special, template, chat, closing", [
    ((), True, "plain", "<|end_of_text|>"), (CHATML, False, "plain", "<|end_of_text|>"),
    (CHATML, True, "chatml", "<|im_end|>"), (LLAMA3, True, "llama3", "<|eot_id|>")])
def test_chat_format_is_read_off_the_folder(special, template, chat, closing, tmp_path):
    """One BOS in every format; a response is trained to end with the token that closes its turn."""
    text = Text(text_folder(tmp_path, *special, template=template))
    prompt = text.encode_prompt(text.prompt(TASK, {"question": "Tom has 3 apples."}))
    assert text.chat == chat
    assert prompt.count(text.tokenizer.token_to_id(BOS)) == 1 and prompt[0] == text.tokenizer.token_to_id(BOS)
    assert all(prompt.count(text.tokenizer.token_to_id(mark)) > 0 for mark in special if chat != "plain")  # not spelled
    assert text.encode_response(" 7")[1:] == [text.tokenizer.token_to_id(closing)] and text.eos in text.stop_ids


def test_stop_ids_join_both_config_files(tmp_path):
    text = Text(text_folder(tmp_path, generation_config={"eos_token_id": [4, 3]}))
    assert (text.eos, text.stop_ids) == (4, [1, 3, 4])
    assert {text.decode([i]) for i in text.newline_ids()} == {"\n", "\n\n"}


@pytest.mark.parametrize("damage, named", [
    (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json: not a tokenizer"),
    (lambda f: (f / "config.json").write_text("{}"), "names an eos_token_id")])
def test_unusable_text_folders_are_refused(damage, named, tmp_path):
    damage(text_folder(tmp_path))
    with pytest.raises(InputError, match=named):
        Text(tmp_path)


# Problems


@pytest.mark.parametrize("lines, named", [
    (None, "p.jsonl: no such file"), ("", "p.jsonl: holds no problem"),
    ('{"question": "a"}\n{', "p.jsonl, line 2: not valid JSON"),
    ('{"question": "a"}\n\n{"text": "b"}', "p.jsonl, line 3: has no 'question'")])
def test_unusable_problem_files_are_refused_by_line(lines, named, tmp_path):
    if lines is not None:
        (tmp_path / "p.jsonl").write_text(lines)
    with pytest.raises(InputError, match=named):
        sample.read_problems(tmp_path / "p.jsonl", TASK)


def test_problems_are_numbered_and_limited(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "a"}\n{"question": "b", "id": "mine"}\n{"question": "c"}\n')
    assert [p["id"] for p in sample.read_problems(tmp_path / "p.jsonl", TASK)] == ["p-0", "mine", "p-2"]
    assert [p["question"] for p in sample.read_problems(tmp_path / "p.jsonl", TASK, 2)] == ["a", "b"]


def scripted(monkeypatch, text: Text, replies: list[tuple[str, bool]]) -> list[dict]:
    """Let sample.generate reply with these texts, in turn; returns the list of its calls."""
    calls = []

    def reply(model, prompts, k, **options):
        calls.append({"prompts": [text.decode(p) for p in prompts], **options})
        queue = [Response(text.encode_response(t)[:-1], ended) for t, ended in replies]
        return [queue[i * k : (i + 1) * k] for i in range(len(prompts))]
    monkeypatch.setattr(sample, "generate", reply)
    return calls


def test_written_problems_are_new_and_whole(toy_checkpoint, monkeypatch):
    text, given = Text(toy_checkpoint), [{"question": f"Tom has {n} apples?"} for n in range(6)]
    replies = [" Ann buys 3?", " Ann buys 4?", " ann  buys 3", " tom has 5 apples", " She has 1?", " ", " Ann bu"]
    calls = scripted(monkeypatch, text, [(r, i < 6) for i, r in enumerate(replies)])
    kept, dropped = sample.write_problems(None, text, TASK, given, 7, known=["She has 1"], name="n", **HOW)
    assert kept == [{"id": "n-0", "question": "Ann buys 3?"}, {"id": "n-1", "question": "Ann buys 4?"}]
    assert dropped == {"cut off": 1, "malformed": 1, "too long": 0, "seen before": 3}
    shown = [prompt.removesuffix("Q:").splitlines() for prompt in calls[0]["prompts"]]
    assert all(len(set(s)) == 4 and set(s) <= {f"Q: {p['question']}" for p in given} for s in shown)
    assert len({tuple(s) for s in shown}) > 3
    assert set(text.newline_ids() + text.stop_ids) <= set(calls[0]["stop_ids"])
    _, dropped = sample.write_problems(None, text, TASK, given, 7, known=[], fits=lambda problem: False, **HOW)
    assert dropped["too long"] == 4  # their prompts would leave no room for an answer
    for seed in (0, 1):
        sample.write_problems(None, text, TASK, given, 7, known=[], **{**HOW, "seed": [seed]})
    assert calls[0]["prompts"] == calls[2]["prompts"] != calls[3]["prompts"]


def test_answers_are_cut_at_the_stop_string_and_gold_is_not_copied(toy_checkpoint, monkeypatch):
    text, problem = Text(toy_checkpoint), {"id": "a", "question": "Tom has 3 apples?", "answer": "#### 77"}
    calls = scripted(monkeypatch, text, [(" 3\n#### 3\nQ: How", False), (" 3", True), (" 3\n", False)])
    assert sample.answer_problems(None, text, TASK, [problem], 3, **HOW) == [
        {"id": "a", "question": problem["question"], "prompt": "Q: Tom has 3 apples?\nA:",
         "responses": [" 3\n#### 3", " 3", " 3\n"], "ended": [True, True, False]}]
    stopped = calls[0]["stopped"]
    assert stopped(text.encode_response(" 3\nQ: H")) and not stopped(text.encode_response(" 3\nQ"))


def test_model_and_tokenizer_must_belong_together(toy_checkpoint, tmp_path):
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((toy_checkpoint / name).read_bytes())
    model, text = sample.load_checkpoint(str(tmp_path), "auto", "cpu", "float32")
    rows = sample.answer_problems(model, text, TASK, [{"id": "a", "question": "Tom has 3 apples?"}], 2, **HOW)
    assert len(rows[0]["responses"]) == 2
    random_llama(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="do not belong together"):
        sample.load_checkpoint(str(tmp_path), "auto", "cpu", "float32")
