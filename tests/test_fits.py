"""The table of settings by GPU: as bench/fits.py prints it, and within the budget."""

import pytest
from conftest import ROOT

from bench import fits

# What their publishers' folders hold, by transformers' count.
PARAMETERS = {
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976, "Qwen3-4B": 4_022_468_096, "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824, "Llama-3-8B": 8_030_261_248,
}


def test_the_models_have_as_many_parameters_as_their_folders():
    counted = {}
    for name, hf_config in fits.MODELS.items():
        counted[name] = sum(p.numel() for p in fits.on_meta(hf_config).parameters())
    assert counted == PARAMETERS


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Llama-3-8B"])
def test_the_table_is_what_the_script_prints(name):
    """`python bench/fits.py` would change nothing; two of its lines, for the time it takes."""
    text = (ROOT / "bench/README.md").read_text(encoding="utf-8")
    assert text.count(f"\n{fits.line(name)}\n") == 1


def test_the_table_of_the_8b_is_what_the_script_prints():
    assert fits.table_of_8b() in (ROOT / "bench/README.md").read_text(encoding="utf-8")


def test_settings_fit_and_one_gpu_less_does_not():
    model, room = fits.on_meta(fits.MODELS["Llama-3-8B"]), 77e9
    ranks, again, micro_batch, rows = fits.settings(model, room)
    need = fits.budget(model, ranks, micro_batch, rows, again)
    assert max(need["training, at most"], need["sampling, at most"]) <= room
    for fewer in (count for count in fits.COUNTS if count < ranks):
        for size in fits.MICRO_BATCHES:
            assert fits.budget(model, fewer, size, rows, True)["training, at most"] > room
    more = fits.MAX_NUM_SEQS[fits.MAX_NUM_SEQS.index(rows) - 1]
    assert fits.budget(model, ranks, micro_batch, more, again)["sampling, at most"] > room
    assert fits.settings(model, 10e9) is None
