"""From text to tokens and back: the chat format, the tokens that end a response, broken folders."""

import json
from pathlib import Path

import pytest
from conftest import BOS, random_llama, tiny_config, toy_tokenizer

from common.cli import InputError
from common.options import load_checkpoint
from tasks.chat import ChatTokenizer
from tasks.task import Task

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PROBLEM = {"question": "Tom has 3 apples."}


def tokenizer_folder(folder: Path, *special: str, has_template=False, **files: dict) -> Path:
    """A folder with a tokenizer that knows the special tokens, and with small JSON files."""
    toy_tokenizer(*special).save(str(folder / "tokenizer.json"))
    contents = {"config": {"eos_token_id": 1}, "tokenizer_config": {}}
    if has_template:
        contents["tokenizer_config"] = {"chat_template": "written in Jinja"}
    contents.update(files)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# --------------------------------------------------------------------------------------------
# Chat formats

FORMATS = pytest.mark.parametrize("special, has_template, chat, closing", [
    ((), True, "plain", "<|end_of_text|>"),
    (CHATML, False, "plain", "<|end_of_text|>"),
    (CHATML, True, "chatml", "<|im_end|>"),
    (LLAMA3, True, "llama3", "<|eot_id|>"),
])


@FORMATS
def test_chat_format_is_read_off_the_folder(special, has_template, chat, closing, tmp_path):
    folder = tokenizer_folder(tmp_path, *special, has_template=has_template)
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.chat == chat
    assert tokenizer.is_chat == (chat != "plain")


@FORMATS
def test_prompts_have_one_bos_and_the_marks_as_tokens(
    special, has_template, chat, closing, tmp_path
):
    folder = tokenizer_folder(tmp_path, *special, has_template=has_template)
    tokenizer = ChatTokenizer(folder)
    prompt = tokenizer.encode_prompt(tokenizer.prompt_for(Task.load("toy"), PROBLEM))
    bos = tokenizer.tokenizer.token_to_id(BOS)
    assert prompt[0] == bos and prompt.count(bos) == 1
    if chat != "plain":
        for mark in special:  # as one token each, not spelled out
            assert tokenizer.tokenizer.token_to_id(mark) in prompt


@FORMATS
def test_a_response_ends_with_the_token_that_closes_its_turn(
    special, has_template, chat, closing, tmp_path
):
    folder = tokenizer_folder(tmp_path, *special, has_template=has_template)
    tokenizer = ChatTokenizer(folder)
    closing_id = tokenizer.tokenizer.token_to_id(closing)
    assert tokenizer.encode_response(" 7")[1:] == [closing_id]
    assert tokenizer.encode_response(" 7", ended=False)[1:] == []
    assert closing_id in tokenizer.stop_ids


def test_a_template_in_a_file_of_its_own_counts_too(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML)
    (folder / "chat_template.jinja").write_text("written in Jinja")
    assert ChatTokenizer(folder).chat == "chatml"


def test_a_format_can_be_forced(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML, has_template=True)
    assert ChatTokenizer(folder, "plain").chat == "plain"
    with pytest.raises(InputError, match=r"--chat llama3: .*<\|eot_id\|>.*--chat plain"):
        ChatTokenizer(folder, "llama3")


def test_a_base_model_reads_the_tasks_prompt_a_chat_model_the_question(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML, has_template=True)
    assert ChatTokenizer(folder, "plain").prompt_for(Task.load("toy"), PROBLEM) == (
        "Q: Tom has 3 apples.\nA:")
    assert ChatTokenizer(folder).prompt_for(Task.load("toy"), PROBLEM) == (
        "<|im_start|>user\nTom has 3 apples.<|im_end|>\n<|im_start|>assistant\n")


# --------------------------------------------------------------------------------------------
# Tokens


def test_stop_ids_join_both_config_files(tmp_path):
    """The first one named, here of generation_config.json, is what a response ends with."""
    folder = tokenizer_folder(tmp_path, generation_config={"eos_token_id": [4, 3]})
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.eos_id == 4
    assert tokenizer.stop_ids == [1, 3, 4]


def test_newline_ids_are_all_tokens_with_a_line_break(tmp_path):
    tokenizer = ChatTokenizer(tokenizer_folder(tmp_path))
    assert {tokenizer.decode([i]) for i in tokenizer.newline_ids()} == {"\n", "\n\n"}


def test_settings_that_would_cut_or_pad_are_turned_off(tmp_path):
    tokenizer_folder(tmp_path)
    tokenizer = toy_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(ChatTokenizer(tmp_path).encode_prompt("x" * 20)) == 21  # and the BOS


# --------------------------------------------------------------------------------------------
# Unusable folders


@pytest.mark.parametrize("name, content, named", [
    ("tokenizer.json", None, "has no tokenizer.json"),
    ("tokenizer.json", "{", "tokenizer.json: not a tokenizer file"),
    ("config.json", "{}", "names an eos_token_id"),
    ("config.json", "{", "config.json: cannot be read as JSON"),
])
def test_unusable_folders_are_refused(name, content, named, tmp_path):
    tokenizer_folder(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=named):
        ChatTokenizer(tmp_path)


@pytest.mark.parametrize("value", ["1", 1.5, {"id": 1}, [[1]], [None], True], ids=repr)
def test_an_eos_token_id_is_a_whole_number(value, tmp_path):
    folder = tokenizer_folder(tmp_path, config={"eos_token_id": value})
    with pytest.raises(InputError, match="config.json.*eos_token_id"):
        ChatTokenizer(folder)


def test_model_and_tokenizer_must_belong_together(toy_checkpoint, tmp_path):
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((toy_checkpoint / name).read_bytes())
    model, tokenizer = load_checkpoint(tmp_path)
    assert tokenizer.tokenizer.get_vocab_size() == model.config.vocab_size
    random_llama(tiny_config()).save_pretrained(tmp_path)  # of 64 tokens
    with pytest.raises(InputError, match="do not belong together"):
        load_checkpoint(tmp_path)
