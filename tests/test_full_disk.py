"""A full disk: one line that names the file, no half file under its name, and a way to go on."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, run, stage_files
from safetensors import SafetensorError

import common.checkpoint
import common.files
import common.journal
import common.training
import eval as evaluation
import sample
import train
from common.files import flush, read_json
from model import Llama

ROUND = [*SMALL, "--rounds", "1", "--limit", "12", "--save-every", "1", "--epochs", "2"]
ROUND += ["--batch-size", "4", "--new-problems", "6", "--method", "reward", "--select", "votes"]
TEXTS = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}
BOTH = pytest.mark.parametrize("number", TEXTS, ids=TEXTS.get)


def fill_when_written(patch, module, path: Path, number: int) -> None:
    """The disk is full when a module has written that file, and waits for it to be on the disk."""

    def full(file):
        if str(file.name).removesuffix(".part") == str(path):
            raise OSError(number, TEXTS[number])
        return flush(file)

    patch.setattr(module, "flush", full)


def full_with(function: str, number: int) -> Callable:
    """In place of a function that writes a file: it writes half of it."""

    def full(source, target, metadata=None):
        Path(target).write_bytes(b"half")
        if function == "save_file":  # as the library for safetensors says it
            raise SafetensorError(f"I/O error: {TEXTS[number]} (os error {number})")
        raise OSError(number, TEXTS[number])

    return full


def is_about_a_full_disk(message: str, file: Path) -> bool:
    text = message.partition(f"{file}: cannot be written (")[2]
    advice = text.endswith("; free some space, then the same command goes on")
    return advice and any(reason in text for reason in TEXTS.values())


# --------------------------------------------------------------------------------------------
# A run

# In the order in which a run comes to them.
FLUSHED = [
    (common.files, "options.json"),
    (common.journal, "M0/eval_responses.jsonl.batches-0"),
    (common.files, "M0/eval_responses.jsonl"),
    (common.files, "stages.json"),
    (common.files, "M0/eval.json"),
    (common.journal, "M1/problems.jsonl.batches-0"),
    (common.files, "M1/problems.jsonl"),
    (common.journal, "M1/responses.jsonl.batches-0"),
    (common.files, "M1/responses.jsonl"),
    (common.files, "M1/rewards.jsonl"),
    (common.files, "M1/pairs.jsonl"),
    (common.files, "M1/reference.jsonl"),
    (common.checkpoint, "M1/checkpoint-1.part/weights/model.safetensors"),
    (common.checkpoint, "M1/checkpoint-2.part/exp_avg/model.safetensors"),
    (common.files, "M1/checkpoint-3.part/log.jsonl"),
    (common.checkpoint, "M1/epochs/2.part/model.safetensors"),
    (common.files, "M1/epochs/2.part/config.json"),
    (common.training, "M1/epochs/2.part/tokenizer.json"),
    (common.files, "M1/log.jsonl"),
    (common.journal, "M1/epochs.jsonl.batches-0"),
    (common.files, "M1/epochs.jsonl"),
    (common.journal, "M1/eval_responses.jsonl.batches-0"),
    (common.files, "M1/eval_responses.jsonl"),
    (common.files, "M1/eval.json"),
    (common.files, "results.json"),
]


def test_a_run_goes_on_wherever_the_disk_was_full(tmp_path, error_of):
    """One run meets it at every stage, within sampling and training too, and ends as one that
    never did."""
    folder = tmp_path / "run"
    for module, file in FLUSHED:
        with pytest.MonkeyPatch.context() as patch:
            fill_when_written(patch, module, folder / file, errno.ENOSPC)
            message = error_of(train, *ROUND, "--out", folder)
        assert is_about_a_full_disk(message, folder / file), message
    run(train, *ROUND, "--out", folder)
    run(train, *ROUND, "--out", tmp_path / "whole")
    assert stage_files(folder) == stage_files(tmp_path / "whole")


def test_half_a_model_folder_does_not_count(tmp_path, error_of):
    """The weights, or the copy of the tokenizer, end in the middle."""
    folder = tmp_path / "run"
    once = [*ROUND, "--epochs", "1", "--save-every", "99", "--no-eval", "--select", "last"]
    once += ["--out", folder]
    for module, function, named in (
        (common.checkpoint, "save_file", "epochs/1.part/model.safetensors"),
        (shutil, "copyfile", "epochs/1.part/generation_config.json"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, function, full_with(function, errno.EDQUOT))
            message = error_of(train, *once)
        assert is_about_a_full_disk(message, folder / "M1" / named)
        assert not (folder / "M1/epochs/1").exists() and not (folder / "M1/log.jsonl").exists()
    run(train, *once)
    Llama.from_pretrained(folder / "M1/model")


# --------------------------------------------------------------------------------------------
# Single files


@BOTH
@pytest.mark.parametrize("script", [sample, evaluation], ids=["sample", "eval"])
@pytest.mark.parametrize("module, wanted", [
    (common.files, "out.jsonl"), (common.journal, "out.jsonl.batches-0"),
], ids=["out", "batches"])
def test_the_out_of_a_script(tmp_path, error_of, script, module, wanted, number):
    argv = "--limit 2 --k 2 --max-new-tokens 4".split()
    with pytest.MonkeyPatch.context() as patch:
        fill_when_written(patch, module, tmp_path / wanted, number)
        message = error_of(script, *argv, "--out", tmp_path / "out.jsonl")
    assert is_about_a_full_disk(message, tmp_path / wanted)
    run(script, *argv, "--out", tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_is_as_it_was_if_its_new_text_finds_no_room(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    common.files.write_json(path, {"M0": 1})
    fill_when_written(monkeypatch, common.files, path, errno.ENOSPC)
    with pytest.raises(common.files.InputError, match="results.json: cannot be written"):
        common.files.write_json(path, {"M0": 2})
    assert read_json(path) == {"M0": 1} and list(tmp_path.iterdir()) == [path]
