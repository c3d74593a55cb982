"""Reward models: ArmoRM's score against an independent, straightforward one, and the miniature's own judge."""

import json
import random

import pytest
import torch
from conftest import BOS, EOS, randomise, tiny_config, toy_tokenizer
from safetensors.torch import load_file, save_file

from eval import RewardModel, order_shares, reward_responses
from model import Config, Llama
from sample import Task, answer_problems, load_checkpoint
from tasks.toy import make, reward
from vote import InputError

MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
OBJECTIVES = {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": 19, "gating_temperature": 10,
              "gating_hidden_dim": 24, "gating_n_hidden": 3}


@pytest.fixture(scope="module")
def armorm(tmp_path_factory):
    """A tiny random checkpoint in ArmoRM's layout: four shards, mixed precision, Llama-3's marks in its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("armorm"), toy_tokenizer(*MARKS, "[PAD]")
    raw = tiny_config(vocab_size=tokenizer.get_vocab_size(), **OBJECTIVES)
    model = RewardModel(Config.from_dict(raw), raw)
    randomise(model)
    with torch.no_grad():
        model.reward_transform_matrix += 0.1 * torch.randn(19, 19, generator=torch.Generator().manual_seed(1))
        model.gating.logit_scale.fill_(1.7)
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in [name for name in state if name.startswith("model.layers")]:  # mixed precision, as the original
        state[name] = state[name].bfloat16().float()
    names, weight_map = sorted(state), {}
    for shard in range(4):
        part = f"model-{shard + 1:05d}-of-00004.safetensors"
        weight_map |= dict.fromkeys(names[shard::4], part)
        save_file({name: state[name].to(torch.bfloat16 if "layers" in name and "gating" not in name else torch.float32)
                   for name in names[shard::4]}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "chat_template": "llama3"}))
    return folder, state, raw


def independent_score(state: dict, raw: dict, tokenizer, user: str, assistant: str) -> float:
    """One conversation, one call, as ArmoRM's own code goes about it; the body is that of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**{k: v for k, v in raw.items() if k not in ("architectures", "rope_theta")},
                                      rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]})
    body = transformers.LlamaModel(config)
    body.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    whole = f"{BOS}{header.format('user')}{user}<|eot_id|>{header.format('assistant')}{assistant}<|eot_id|>"
    ids = tokenizer.encode(whole, add_special_tokens=False).ids
    pattern = tokenizer.encode("<|eot_id|>" + header.format("assistant"), add_special_tokens=False).ids
    starts = [i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern]
    with torch.no_grad():
        hidden = body(torch.tensor([ids])).last_hidden_state[0]
    gate = hidden[starts[-1]]
    for layer in range(4):
        gate = state[f"gating.layers.{layer}.weight"] @ gate + state[f"gating.layers.{layer}.bias"]
        gate = gate.clamp(min=0) if layer < 3 else gate
    gate = torch.exp(gate / 10) / torch.exp(gate / 10).sum() * state["gating.logit_scale"]
    rewards = [float(row @ hidden[-1]) for row in state["regression_layer.weight"]]
    adjusted = [sum(rewards[i] * float(state["reward_transform_matrix"][i, j]) for i in range(19)) for j in range(19)]
    return sum(float(g) * r for g, r in zip(gate, adjusted))


def test_scores_in_batches_equal_an_independent_implementation(armorm):
    folder, state, raw = armorm
    assert set(state) > {"regression_layer.weight", "reward_transform_matrix", "gating.logit_scale",
                         "gating.layers.3.weight", "model.embed_tokens.weight"} and "lm_head.weight" not in state
    model, text = load_checkpoint(str(folder), "auto", "cpu", "float32", RewardModel)
    assert text.chat == "llama3"
    rows = [{"question": " How many? ", "responses": ["5", "Tom has 5 apples.\n#### 5", "\nnone \n"]},
            {"question": "How many apples does Tom have now? He has 4.", "responses": ["4", "He has 4.", "x" * 40]}]
    expected = [[independent_score(state, raw, text.tokenizer, row["question"].strip(), response.strip())
                 for response in row["responses"]] for row in rows]
    for batch in (1, 4, 6):
        for ours, theirs in zip(reward_responses(model, text, rows, batch, ""), expected):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert len({round(score, 3) for row in expected for score in row}) == 6  # a test that could fail


def test_bfloat16_is_for_the_body_alone(armorm):
    """Heads in fp32 keep responses apart that the body tells apart, and padding does not matter there either."""
    rows = [{"question": "How many?", "responses": [f"He has {n} apples." for n in range(40)]}]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        model, text = load_checkpoint(str(armorm[0]), "auto", "cpu", dtype, RewardModel)
        assert model.regression_layer.weight.dtype == torch.float32 == model.gating.layers[0].weight.dtype
        [scores[dtype]] = reward_responses(model, text, rows, 16, "")
    assert len(set(scores["bfloat16"])) == 40
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.1, abs=0.1)


def test_a_mark_inside_a_question_does_not_move_the_gate(armorm):
    folder, state, raw = armorm
    model, text = load_checkpoint(str(folder), "auto", "cpu", "float32", RewardModel)
    question = "a<|eot_id|>b"
    [[ours]] = reward_responses(model, text, [{"question": question, "responses": ["4"]}], 4, "")
    assert ours == pytest.approx(independent_score(state, raw, text.tokenizer, question, "4"), rel=1e-4)


def test_parameter_count_is_armorms():
    raw = tiny_config(**OBJECTIVES | {"gating_hidden_dim": 1024}, vocab_size=128257, hidden_size=4096,
                      intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    with torch.device("meta"):
        model = RewardModel(Config.from_dict(raw), raw)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 7_511_320_957


def test_a_language_model_is_no_reward_model_and_the_other_way_round(armorm, toy_checkpoint):
    with pytest.raises(InputError, match="num_objectives"):
        load_checkpoint(str(toy_checkpoint), "auto", "cpu", "float32", RewardModel)
    with pytest.raises(InputError, match="does not belong"):
        load_checkpoint(str(armorm[0]), "auto", "cpu", "float32", Llama)


def test_labelled_pairs_are_right_against_wrong_and_use_no_response_twice():
    row = {"responses": ["#### 4", "#### 5", "#### 4", "none", "#### 4"]}
    for seed in range(20):
        pairs = reward.labelled_pairs(row, "4", random.Random(seed))
        assert len(pairs) == 2 and {b for _, b in pairs} == {1, 3} and {a for a, _ in pairs} < {0, 2, 4}


def test_the_shipped_judge_beats_chance_on_easy_problems_it_has_not_seen():
    rng = random.Random("unseen")
    seen = {make.skeleton(row["question"]) for row in reward.easy_problems(reward.Options())}
    problems = [make.fresh(rng, rng.choice((1, 2)), seen) for _ in range(120)]
    rows = [{"id": i, "question": p.question(), "gold": str(make.solve(p.question()))} for i, p in enumerate(problems)]
    m0, text = load_checkpoint(str(make.HERE / "model"), "auto", "cpu", "float32")
    answered = answer_problems(m0, text, Task.load("toy"), rows, 8, temperature=1.0, top_p=1.0, max_new_tokens=60,
                               seed=[99])
    judge, text = load_checkpoint(str(make.HERE / "reward"), "auto", "cpu", "float32", RewardModel)
    rows = [row | answer for row, answer in zip(rows, answered)]
    shares = order_shares(rows, "toy", reward_responses(judge, text, rows, 512, ""))
    assert shares["right"] > 0.7
    unknown = text.tokenizer.token_to_id(make.UNK)
    assert not any(unknown in text.judged("", response)[1] for row in rows for response in row["responses"])
