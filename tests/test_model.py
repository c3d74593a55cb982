"""The forward pass against transformers, the key/value cache against no cache, and strict loading.

`python tests/test_model.py` recomputes golden.json with transformers.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SHIPPED, random_llama, randomise, tiny_config
from safetensors.torch import load_file, save_file

from model import Config, Llama
from sample import generate, prefill
from vote import InputError

GOLDEN = Path(__file__).parent / "golden.json"
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16}
SHAPES = {
    "smollm2": tiny_config(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
                           rope_theta=1e5),
    "llama3-8b": tiny_config(num_attention_heads=8, num_key_value_heads=2, rope_theta=5e5),
    "llama3.2": tiny_config(head_dim=16, tie_word_embeddings=True, rope_theta=5e5, rope_scaling=LLAMA3_ROPE),
    "llama2": tiny_config(num_key_value_heads=4, rms_norm_eps=1e-6),
    "biases": tiny_config(attention_bias=True, mlp_bias=True),
}


def some_tokens(rows: int, length: int, vocab: int = 64) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def logits_of(model, tokens: torch.Tensor) -> torch.Tensor:
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def peer(raw: dict):
    """A random transformers Llama of the same config.json."""
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**raw)).eval()
    randomise(model)
    return model


@torch.no_grad()
def golden_llama(raw: dict) -> Llama:
    """Weights from a formula, not from a random generator: the same on every machine and in every torch."""
    model = Llama(Config.from_dict(raw), raw)
    for name, p in model.named_parameters():
        i = torch.arange(p.numel()) + len(name)
        wave = torch.sin((i * i % 7919).double()).float().view_as(p)
        p.copy_(1 + 0.3 * wave if "norm" in name else 0.5 * wave if p.dim() == 1 else 3 * wave / p.shape[1] ** 0.5)
    return model


# Against transformers


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_transformers(shape, tmp_path):
    """From the folder transformers writes, and from the same folder with config.json in its older spelling."""
    theirs, tokens = peer(SHAPES[shape]), some_tokens(2, 96)
    theirs.save_pretrained(tmp_path)
    want = logits_of(theirs, tokens)
    assert want.std() > 0.5
    torch.testing.assert_close(logits_of(Llama.from_pretrained(tmp_path), tokens), want, atol=1e-4, rtol=0)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in raw and "rope_theta" not in raw
    old = {name: SHAPES[shape].get(name) for name in ("rope_theta", "rope_scaling")}
    raw = {**{n: v for n, v in raw.items() if n not in ("rope_parameters", "dtype")}, **old, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    torch.testing.assert_close(logits_of(Llama.from_pretrained(tmp_path), tokens), want, atol=1e-4, rtol=0)
    if old["rope_scaling"]:  # and the scaling is no accident: without it the logits are others
        (tmp_path / "config.json").write_text(json.dumps({**raw, "rope_scaling": None}))
        assert (logits_of(Llama.from_pretrained(tmp_path), tokens) - want).abs().max() > 0.1


def test_shipped_model_equals_transformers():
    transformers = pytest.importorskip("transformers")
    assert (SHIPPED / "model.safetensors").exists(), f"{SHIPPED} is missing: make it with tasks/toy/make.py"
    theirs = transformers.LlamaForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    tokens = some_tokens(2, 96, theirs.config.vocab_size)
    ours = Llama.from_pretrained(SHIPPED)
    torch.testing.assert_close(logits_of(ours, tokens), logits_of(theirs, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_stored_ones_of_transformers(shape):
    golden = json.loads(GOLDEN.read_text())
    got = logits_of(golden_llama(SHAPES[shape]), torch.tensor([golden["tokens"]]))[0, golden["positions"], :8]
    torch.testing.assert_close(got, torch.tensor(golden["logits"][shape]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", ["smollm2", "llama3.2"])
def test_greedy_generation_equals_transformers(shape, tmp_path):
    theirs = peer(SHAPES[shape])
    theirs.save_pretrained(tmp_path)
    prompts = [some_tokens(1, n)[0].tolist() for n in (3, 14)]
    ours = generate(Llama.from_pretrained(tmp_path), prompts, 1, max_new_tokens=12, temperature=0)
    for prompt, [response] in zip(prompts, ours, strict=True):
        out = theirs.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                              do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
        assert response.tokens == out[0, len(prompt):].tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_what_we_save(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, tokens = random_llama(SHAPES[shape]), some_tokens(2, 96)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(logits_of(theirs, tokens), logits_of(ours, tokens), atol=1e-4, rtol=0)


def test_shards_written_by_transformers_load_as_one(tmp_path):
    theirs = peer(SHAPES["llama3-8b"])
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    state = Llama.from_pretrained(tmp_path).state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


# The forward pass and its cache


def test_later_tokens_change_no_earlier_logit_and_the_input_stays():
    model, tokens = random_llama(SHAPES["llama3.2"]), some_tokens(2, 20)
    before = tokens.clone()
    logits = logits_of(model, tokens)
    assert torch.equal(tokens, before)
    changed = logits_of(model, torch.cat((tokens[:, :12], (tokens[:, 12:] + 1) % 64), 1))
    assert torch.equal(logits[:, :12], changed[:, :12])
    assert (logits[:, 12:] != changed[:, 12:]).any(-1).all()


@torch.no_grad()
def test_cached_equals_uncached_for_rows_of_different_lengths():
    """Padded prompts, then a chunk of three tokens, then single ones, each row at its own positions."""
    model, rows, lengths = random_llama(SHAPES["llama3.2"]), some_tokens(3, 30), [20, 5, 13]
    want = logits_of(model, rows)
    cache, first = prefill(model, [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)], 1, 10)
    got = [first[:, None]]
    for start, stop in [(0, 3), (3, 4), (4, 5), (5, 8)]:
        got.append(model(torch.stack([row[n + start : n + stop] for row, n in zip(rows, lengths, strict=True)]), cache))
    assert cache.lengths.tolist() == [n + 8 for n in lengths]
    for row, n in enumerate(lengths):
        torch.testing.assert_close(torch.cat(got, 1)[row], want[row, n - 1 : n + 8], atol=1e-5, rtol=0)


def test_cached_attention_takes_any_layout_of_its_kernel(monkeypatch):
    """CUDA's memory-efficient kernel returns (B, T, heads, D), transposed."""
    model, tokens, plain = random_llama(SHAPES["llama3-8b"]), some_tokens(3, 5), F.scaled_dot_product_attention
    expected = prefill(model, tokens.tolist(), 1, 4)[1]
    monkeypatch.setattr(F, "scaled_dot_product_attention",
                        lambda *args, **kw: plain(*args, **kw).transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(prefill(model, tokens.tolist(), 1, 4)[1], expected)


@torch.no_grad()
def test_select_repeats_and_drops_rows_of_the_cache():
    model, rows, lengths = random_llama(SHAPES["llama3-8b"]), some_tokens(2, 12), [7, 10]
    cache, _ = prefill(model, [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)], 1, 4)
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.lengths.tolist() == [10, 10, 7]
    model(torch.tensor([[3], [4], [5]]), cache)  # the two copies of row 1 part ways
    cache.select(torch.tensor([2, 1]))
    got = model(torch.tensor([[8], [9]]), cache)[:, 0]
    for logits, row, n, new in [(got[0], 0, 7, [5, 8]), (got[1], 1, 10, [4, 9])]:
        want = model(torch.tensor([rows[row, :n].tolist() + new]))[0, -1]
        torch.testing.assert_close(logits, want, atol=1e-5, rtol=0)


# Checkpoint folders


@pytest.mark.parametrize("shape", ["smollm2", "biases"])
def test_save_load_save_is_byte_identical(shape, tmp_path):
    random_llama({**SHAPES[shape], "extra_field": [1], "torch_dtype": "float16"}).save_pretrained(tmp_path / "a")
    Llama.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert saved["extra_field"] == [1] and saved["dtype"] == "float32" and "torch_dtype" not in saved


def test_bfloat16_is_loaded_and_saved_as_asked(tmp_path):
    model = random_llama(SHAPES["biases"])
    model.save_pretrained(tmp_path / "a")
    half = Llama.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    for name, p in half.named_parameters():
        assert torch.equal(p, model.state_dict()[name].bfloat16())
    assert logits_of(half, some_tokens(1, 8)).dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "b" / "model.safetensors").values()} == {torch.bfloat16}


def edit_weights(folder: Path, **changes) -> None:
    state = {**load_file(folder / "model.safetensors"), **{n.replace("__", "."): t for n, t in changes.items()}}
    save_file({n: t for n, t in state.items() if t is not None}, folder / "model.safetensors")


def edit_config(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps({**SHAPES["llama2"], **changes}))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def name_a_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage, named", {
    "missing tensor": (lambda f: edit_weights(f, model__norm__weight=None), "model.norm.weight"),
    "extra tensor": (lambda f: edit_weights(f, model__odd=torch.ones(1)), "model.safetensors: tensor model.odd"),
    "wrong shape": (lambda f: edit_weights(f, lm_head__weight=torch.ones(63, 32)), r"lm_head.weight is \(63, 32\)"),
    "truncated": (lambda f: cut_short(f / "model.safetensors"), "model.safetensors: not a readable"),
    "missing shard": (name_a_missing_shard, "model-2.safetensors: no such file"),
    "not a Llama": (lambda f: edit_config(f, model_type="qwen2"), "config.json: model_type is 'qwen2'"),
    "rope type": (lambda f: edit_config(f, rope_scaling={"type": "yarn"}), "config.json: rope_type 'yarn'"),
    "rope factors": (lambda f: edit_config(f, rope_scaling={"rope_type": "llama3"}), "config.json: .*low_freq_factor"),
    "no layer count": (lambda f: edit_config(f, num_hidden_layers=None), "config.json: num_hidden_layers must be"),
    "a size as text": (lambda f: edit_config(f, hidden_size="128"), "config.json: hidden_size must be"),
    "no heads": (lambda f: edit_config(f, num_attention_heads=0), "config.json: num_attention_heads must be"),
    "odd heads": (lambda f: edit_config(f, num_key_value_heads=3), "multiple of num_key_value_heads"),
    "rope as text": (lambda f: edit_config(f, rope_scaling="linear"), "config.json: rope_parameters or"),
    "broken JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
}.values())
def test_damaged_folders_are_refused_by_name(damage, named, tmp_path):
    random_llama(SHAPES["llama2"]).save_pretrained(tmp_path / "m")
    Llama.from_pretrained(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(InputError, match=named):
        Llama.from_pretrained(tmp_path / "m")


if __name__ == "__main__":
    tokens, positions, stored = some_tokens(1, 64)[0].tolist(), [0, 1, 17, 40, 63], {}
    for shape, raw in SHAPES.items():
        theirs = peer(raw)
        theirs.load_state_dict(golden_llama(raw).state_dict(), strict=not raw["tie_word_embeddings"])
        stored[shape] = logits_of(theirs, torch.tensor([tokens]))[0, positions, :8].tolist()
    GOLDEN.write_text(json.dumps({"tokens": tokens, "positions": positions, "logits": stored}) + "\n")
