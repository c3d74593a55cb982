"""Reward models: ArmoRM's score against an independent one, and the toy task's own judge."""

import json
import random
from typing import NamedTuple

import pytest
import torch
from conftest import BOS, EOS, SHIPPED, TOY, randomise, tiny_config, toy_tokenizer
from safetensors.torch import load_file, save_file

from bench.analyse import order_shares
from common.cli import InputError
from common.options import load_checkpoint
from common.reward_model import RewardModel, one_turn, reward_responses
from model import Config
from sample import SamplingParams, answer_problems
from tasks.chat import ChatTokenizer
from tasks.task import Task
from tasks.toy import make, reward

MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
OBJECTIVES = {"architectures": ["LlamaForRewardModelWithGating"], "num_objectives": 19,
              "gating_temperature": 10, "gating_hidden_dim": 24, "gating_n_hidden": 3}


class ArmoRM(NamedTuple):
    """A tiny random checkpoint in ArmoRM's layout."""

    folder: str
    state: dict[str, torch.Tensor]  # its weights, in fp32
    hf_config: dict

    def load(self, dtype: str = "float32") -> tuple[RewardModel, ChatTokenizer]:
        return load_checkpoint(self.folder, dtype=dtype, kind=RewardModel)


def random_reward_model(hf_config: dict) -> RewardModel:
    model = RewardModel(Config.from_dict(hf_config), hf_config)
    randomise(model)
    noise = torch.randn(19, 19, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.reward_transform_matrix += 0.1 * noise
        model.gating.logit_scale.fill_(1.7)
    return model


def is_of_the_body(name: str) -> bool:
    return name.startswith("model.layers")


@pytest.fixture(scope="module")
def armorm(tmp_path_factory) -> ArmoRM:
    """As the original: four shards, blocks in bf16 and all else in fp32, Llama 3's marks."""
    folder, tokenizer = tmp_path_factory.mktemp("armorm"), toy_tokenizer(*MARKS, "[PAD]")
    hf_config = tiny_config(vocab_size=tokenizer.get_vocab_size(), **OBJECTIVES)
    random_reward_model(hf_config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stored = {}
    for name, tensor in state.items():
        stored[name] = tensor.bfloat16() if is_of_the_body(name) else tensor
    names, weight_map = sorted(stored), {}
    for shard in range(4):
        file = f"model-{shard + 1:05d}-of-00004.safetensors"
        mine = names[shard::4]
        save_file({name: stored[name] for name in mine}, folder / file)
        weight_map.update(dict.fromkeys(mine, file))
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS,
                "chat_template": "{{ bos_token }}<|start_header_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ArmoRM(str(folder), {name: t.float() for name, t in stored.items()}, hf_config)


# --------------------------------------------------------------------------------------------
# The score


def independent_score(armorm: ArmoRM, tokenizer, user: str, assistant: str) -> float:
    """One conversation, as ArmoRM's own code goes about it; the body is that of transformers."""
    state = armorm.state
    hidden, gate_position = hidden_states(armorm, tokenizer, user, assistant)
    gate = hidden[gate_position]
    for layer in range(4):
        weight, bias = state[f"gating.layers.{layer}.weight"], state[f"gating.layers.{layer}.bias"]
        gate = weight @ gate + bias
        if layer < 3:
            gate = gate.clamp(min=0)
    gate = torch.exp(gate / 10) / torch.exp(gate / 10).sum() * state["gating.logit_scale"]
    rewards = [float(row @ hidden[-1]) for row in state["regression_layer.weight"]]
    score = 0.0
    for j in range(19):
        adjusted = 0.0
        for i in range(19):
            adjusted += rewards[i] * float(state["reward_transform_matrix"][i, j])
        score += float(gate[j]) * adjusted
    return score


@torch.no_grad()
def hidden_states(armorm: ArmoRM, tokenizer, user: str, assistant: str):
    """Final hidden states (T, hidden_size), and the position where the last prompt ends."""
    transformers = pytest.importorskip("transformers")
    settings = {**armorm.hf_config, "rope_parameters": {
        "rope_type": "default", "rope_theta": armorm.hf_config["rope_theta"]}}
    del settings["architectures"], settings["rope_theta"]
    body = transformers.LlamaModel(transformers.LlamaConfig(**settings))
    weights = {}
    for name, tensor in armorm.state.items():
        if name.startswith("model."):
            weights[name.removeprefix("model.")] = tensor
    body.load_state_dict(weights)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = (f"{BOS}{header.format('user')}{user}<|eot_id|>"
            f"{header.format('assistant')}{assistant}<|eot_id|>")
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    closing = "<|eot_id|>" + header.format("assistant")
    pattern = tokenizer.encode(closing, add_special_tokens=False).ids
    starts = [i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern]
    return body(torch.tensor([ids])).last_hidden_state[0], starts[-1]


ROWS = [
    {"question": " How many? ", "responses": ["5", "Tom has 5 apples.\n#### 5", "\nnone \n"]},
    {"question": "How many apples does Tom have now? He has 4.",
     "responses": ["4", "He has 4.", "x" * 40]},
]


def test_scores_in_batches_equal_an_independent_implementation(armorm):
    model, tokenizer = armorm.load()
    assert tokenizer.chat == "llama3"
    expected = []
    for row in ROWS:
        question = row["question"].strip()  # as a chat template trims both texts
        for response in row["responses"]:
            expected.append(
                independent_score(armorm, tokenizer.tokenizer, question, response.strip()))
    assert len({round(score, 3) for score in expected}) == 6  # they can be told apart
    for batch_size in (1, 4, 6):
        first, second = reward_responses(model, tokenizer, ROWS, batch_size)
        assert first + second == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_mark_inside_a_question_does_not_move_the_gate(armorm):
    """It is plain text there, so the one that closes the user's turn is the only one."""
    _, tokenizer = armorm.load()
    prompt, _, prompt_end = one_turn(tokenizer, "a<|eot_id|>b", "4")
    assert [i for i, token in enumerate(prompt) if token == tokenizer.eos_id] == [prompt_end]
    assert "a<|eot_id|>b" in tokenizer.decode(prompt)


def test_bfloat16_is_for_the_body_alone(armorm):
    """Heads in fp32 keep responses apart that the body tells apart."""
    rows = [{"question": "How many?", "responses": [f"He has {n} apples." for n in range(40)]}]
    scores = {}
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = armorm.load(dtype)
        assert model.model.norm.weight.dtype == getattr(torch, dtype)
        assert model.regression_layer.weight.dtype == torch.float32
        assert model.gating.layers[0].weight.dtype == torch.float32
        [scores[dtype]] = reward_responses(model, tokenizer, rows, batch_size=16)
    assert len(set(scores["bfloat16"])) == 40
    assert scores["bfloat16"] == pytest.approx(scores["float32"], rel=0.1, abs=0.1)


# --------------------------------------------------------------------------------------------
# The folder


def test_the_layout_is_armorms(armorm):
    assert set(armorm.state) > {
        "regression_layer.weight", "reward_transform_matrix", "gating.logit_scale",
        "gating.layers.3.weight", "model.embed_tokens.weight"}
    assert "lm_head.weight" not in armorm.state


def test_parameter_count_is_armorms():
    hf_config = tiny_config(
        **{**OBJECTIVES, "gating_hidden_dim": 1024}, vocab_size=128257, hidden_size=4096,
        intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8)
    with torch.device("meta"):
        model = RewardModel(Config.from_dict(hf_config), hf_config)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 7_511_320_957


def test_a_language_model_is_no_reward_model(toy_checkpoint):
    with pytest.raises(InputError, match="num_objectives"):
        load_checkpoint(toy_checkpoint, kind=RewardModel)


def test_a_reward_model_is_no_language_model(armorm):
    with pytest.raises(InputError, match="does not belong"):
        load_checkpoint(armorm.folder)


@pytest.mark.parametrize("name, value", [
    ("num_objectives", 0), ("num_objectives", "19"), ("num_objectives", True),
    ("gating_hidden_dim", None), ("gating_n_hidden", -1), ("gating_n_hidden", 10_000),
    ("gating_temperature", 0), ("gating_temperature", "10"), ("gating_temperature", float("nan")),
])
def test_absurd_settings_are_refused(name, value):
    hf_config = tiny_config(**{**OBJECTIVES, "gating_hidden_dim": 1, name: value})
    with torch.device("meta"), pytest.raises(InputError, match=name):
        RewardModel(Config.from_dict(hf_config), hf_config)


# --------------------------------------------------------------------------------------------
# The toy task's judge


def test_labelled_pairs_are_right_against_wrong_and_use_no_response_twice():
    """Two of five responses are wrong."""
    row = {"responses": ["#### 4", "#### 5", "#### 4", "none", "#### 4"]}
    for seed in range(20):
        pairs = reward.labelled_pairs(row, "4", random.Random(seed))
        assert len(pairs) == 2
        assert {wrong for _, wrong in pairs} == {1, 3}
        rights = {right for right, _ in pairs}
        assert len(rights) == 2 and rights < {0, 2, 4}


@pytest.fixture(scope="module")
def judged() -> tuple[list[dict], RewardModel, ChatTokenizer]:
    """M0's answers to 120 easy problems that the shipped judge has not seen, and the judge."""
    rng = random.Random("unseen")
    seen = set()
    for row in reward.easy_problems(reward.options().parse_args([])):
        seen.add(make.skeleton(row["question"]))
    problems = []
    for i in range(120):
        question = make.fresh(rng, rng.choice((1, 2)), seen).question()
        problems.append({"id": i, "question": question, "gold": str(make.solve(question))})
    model, tokenizer = load_checkpoint(SHIPPED)
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=60)
    answered = answer_problems(model, tokenizer, Task.load("toy"), problems, 8, params, seed=[99])
    rows = [{**problem, **row} for problem, row in zip(problems, answered)]
    return rows, *load_checkpoint(TOY / "reward", kind=RewardModel)


def test_the_shipped_judge_beats_chance_on_easy_problems_it_has_not_seen(judged):
    rows, judge, tokenizer = judged
    scores = reward_responses(judge, tokenizer, rows, batch_size=512)
    assert order_shares(rows, "toy", scores)["right"] > 0.7


def test_the_shipped_judge_knows_every_word_of_the_responses(judged):
    rows, _, tokenizer = judged
    unknown = tokenizer.tokenizer.token_to_id(make.UNK)
    for row in rows:
        for response in row["responses"]:
            _, tokens, _ = one_turn(tokenizer, row["question"], response)
            assert unknown not in tokens
