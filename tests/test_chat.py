"""From text to tokens and back: the chat format, the tokens that end a response, broken folders."""

import json
from pathlib import Path

import pytest
from conftest import (BOS, EOS, MODELS, needs_models, random_llama, tiny_config,
                      toy_tokenizer)

from common.cli import InputError
from common.options import load_checkpoint
from tasks.chat import ChatTokenizer
from tasks.task import Task

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
R1 = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
INST = ("[INST]", "[/INST]")
PROBLEM = {"question": "Tom has 3 apples."}

# The templates of well-known folders, as far as they matter to one user turn with or without a
# system turn. The texts between quotes are theirs.
LOOP = "{% for message in messages %}"
SMOLLM2 = LOOP + """{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
QWEN_TURNS = r"""{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
"""
QWEN25 = r"""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nDEFAULT<|im_end|>\n' }}
{%- endif %}
""" + QWEN_TURNS + "{%- endif %}"
QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
""" + QWEN_TURNS + r"""    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
LLAMA30 = LOOP + (
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}")
LLAMA31 = r"""{{- bos_token }}
{%- set date_string = "26 Jul 2024" %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"""
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}")
LLAMA2 = SYSTEM_FIRST + (
    "{% for message in turns %}{% if system %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% endfor %}")
MISTRAL = SYSTEM_FIRST + (
    '{{- bos_token }}{% for message in turns %}{%- if system %}'
    '{{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}{%- else %}'
    '{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}{% endfor %}')
R1_DISTILL = SYSTEM_FIRST + (
    "{{ bos_token }}{{ system }}{% for message in turns %}{{'<｜User｜>' + message['content']}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}")
QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
BOXED = r"Please reason step by step, and put your final answer within \\boxed{}."  # as in Jinja

# Of each: special tokens, template, our name, the token that closes a response, the system turn.
FAMILIES = {
    "smollm2": (CHATML, SMOLLM2, "chatml", "<|im_end|>",
                "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2.5": (CHATML, QWEN25.replace("DEFAULT", QWEN_SYSTEM), "chatml", "<|im_end|>",
                QWEN_SYSTEM),
    "qwen2.5-math": (CHATML, QWEN25.replace("DEFAULT", BOXED), "chatml", "<|im_end|>",
                     BOXED.replace("\\\\", "\\")),
    "qwen3": (CHATML, QWEN3, "qwen3", "<|im_end|>", ""),
    "r1-distill": (R1, R1_DISTILL, "deepseek", "<｜end▁of▁sentence｜>", ""),
    "llama3": (LLAMA3, LLAMA30, "llama3", "<|eot_id|>", ""),
    "llama3.1": (LLAMA3, LLAMA31, "llama3", "<|eot_id|>",
                 "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"),
    "llama2": ((), LLAMA2, "llama2", EOS, ""),
    "mistral": (INST, MISTRAL, "mistral", EOS, ""),
    "mistral-v0.1": ((), MISTRAL.replace("[/INST]", " [/INST]"), "mistral", EOS, ""),
    "mistral-nemo": (INST, MISTRAL.replace("[INST] ", "[INST]"), "mistral", EOS, ""),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def tokenizer_folder(folder: Path, *special: str, template: str = "", **files: dict) -> Path:
    """A folder with a tokenizer that knows the special tokens, and with small JSON files."""
    toy_tokenizer(*special).save(str(folder / "tokenizer.json"))
    settings = {"bos_token": BOS, "eos_token": EOS}
    if template:
        settings["chat_template"] = template
    contents = {"config": {"eos_token_id": 1}, "tokenizer_config": settings, **files}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def family_folder(family: str, folder: Path) -> Path:
    special, template, *_ = FAMILIES[family]
    return tokenizer_folder(folder, *special, template=template)


# --------------------------------------------------------------------------------------------
# Chat formats


@each_family
def test_chat_format_is_read_off_the_folder(family, tmp_path):
    tokenizer = ChatTokenizer(family_folder(family, tmp_path))
    *_, chat, closing, system = FAMILIES[family]
    assert tokenizer.chat == chat and tokenizer.is_chat
    assert tokenizer.before.count("system") == (chat in ("chatml", "llama3") and system != "")
    assert system in tokenizer.before


def their_prompt(folder: Path, text: str, system: str | None) -> list[int]:
    """That of transformers, which runs the template."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, return_dict=False)


@pytest.mark.parametrize("text", ["Tom has 3 apples.", "  two\n\nlines \n", "1", "[x] {text}"])
@pytest.mark.parametrize("system", [None, "Be brief.", "{prompt} {system}"])
@each_family
def test_prompts_are_those_of_transformers(family, system, text, tmp_path):
    if family == "llama3.1" and system:
        pytest.skip("Llama 3.1 writes its dates before any system text; --system replaces them")
    folder = family_folder(family, tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = ChatTokenizer(folder, system=system)
    if family == "llama2" and system:  # between the two turns white space stays there
        text = text.lstrip()
    ours = tokenizer.encode_prompt(tokenizer.apply_template(text))
    assert ours == their_prompt(folder, text, system)


@needs_models
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_prompts_of_real_folders_are_those_of_transformers(system):
    """Every folder of SCPO_MODELS that has a chat template."""
    folders = [path.parent for path in MODELS.glob("*/tokenizer.json")]
    folders = [folder for folder in folders if ChatTokenizer(folder).is_chat]
    assert folders
    for folder in folders:
        tokenizer = ChatTokenizer(folder, system=system)
        for text in ("How many are 3 and 4?", "  two\n\nlines \n", "¼ of 中文 😀"):
            ours = tokenizer.encode_prompt(tokenizer.apply_template(text))
            assert ours == their_prompt(folder, text, system), (folder, text)


@each_family
def test_the_system_turn_can_be_left_out(family, tmp_path):
    tokenizer = ChatTokenizer(family_folder(family, tmp_path), system="")
    assert "system" not in tokenizer.before and "You are" not in tokenizer.before
    assert "Date" not in tokenizer.before and "reason" not in tokenizer.before


def test_a_base_model_has_no_system_turn(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML)
    assert ChatTokenizer(folder, system="").before == ""
    with pytest.raises(InputError, match="--system: .* is not recognized as a chat model"):
        ChatTokenizer(folder, system="Be brief.")
    assert "Be brief." in ChatTokenizer(folder, "chatml", "Be brief.").before


@each_family
def test_prompts_have_at_most_one_bos_and_the_marks_as_tokens(family, tmp_path):
    tokenizer = ChatTokenizer(family_folder(family, tmp_path))
    special, template, *_ = FAMILIES[family]
    prompt = tokenizer.encode_prompt(tokenizer.prompt_for(Task.load("toy"), PROBLEM))
    assert prompt.count(0) == ("bos_token" in template)
    for mark in special[:2]:  # as one token each, not spelled out
        assert tokenizer.tokenizer.token_to_id(mark) in prompt


def test_a_base_model_and_a_forced_format_get_the_tokenizers_bos(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML)
    for chat in ("auto", "chatml"):
        tokenizer = ChatTokenizer(folder, chat)
        prompt = tokenizer.encode_prompt(tokenizer.prompt_for(Task.load("toy"), PROBLEM))
        assert prompt[0] == 0 and prompt.count(0) == 1


@each_family
def test_a_response_ends_with_the_token_that_closes_its_turn(family, tmp_path):
    tokenizer, closing = ChatTokenizer(family_folder(family, tmp_path)), FAMILIES[family][3]
    closing_id = tokenizer.tokenizer.token_to_id(closing)
    assert tokenizer.encode_response(" 7")[1:] == [closing_id]
    assert tokenizer.encode_response(" 7", ended=False)[1:] == []
    assert closing_id in tokenizer.stop_ids


def test_without_a_template_it_is_a_base_model(tmp_path):
    """The marks in the vocabulary say nothing: Qwen's base models have them too."""
    assert not ChatTokenizer(tokenizer_folder(tmp_path, *CHATML, template="")).is_chat


def test_a_template_in_a_file_of_its_own_counts_too(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML)
    (folder / "chat_template.jinja").write_text(SMOLLM2)
    assert ChatTokenizer(folder).chat == "chatml"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match="chat_template.jinja: cannot be read as UTF-8 text"):
        ChatTokenizer(folder)


def test_of_several_templates_the_default_one_counts(tmp_path):
    several = [{"name": "tool_use", "template": LLAMA2}, {"name": "default", "template": SMOLLM2}]
    folder = tokenizer_folder(tmp_path, *CHATML, template=several)
    assert ChatTokenizer(folder).chat == "chatml"


@pytest.mark.parametrize("template", [7, {"default": SMOLLM2}, [7]], ids=repr)
def test_a_template_that_is_no_text_is_refused(template, tmp_path):
    with pytest.raises(InputError, match="tokenizer_config.json: chat_template must be"):
        ChatTokenizer(tokenizer_folder(tmp_path, template=template))


def test_a_template_of_no_known_family_must_be_named(tmp_path):
    """Silently read as a base model, a chat model would answer in another format than its own."""
    folder = tokenizer_folder(tmp_path, template="### User: {{ messages[0].content }}")
    with pytest.raises(InputError, match="of no family that is known here; give --chat, one of"):
        ChatTokenizer(folder)
    assert ChatTokenizer(folder, "plain").chat == "plain"


def test_a_format_can_be_forced(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML, template=SMOLLM2)
    assert ChatTokenizer(folder, "plain").chat == "plain"
    with pytest.raises(InputError, match=r"--chat llama3: .*<\|eot_id\|>.*--chat plain"):
        ChatTokenizer(folder, "llama3")


def test_a_base_model_reads_the_tasks_prompt_a_chat_model_the_question(tmp_path):
    folder = tokenizer_folder(tmp_path, *CHATML, template=SMOLLM2)
    assert ChatTokenizer(folder, "plain").prompt_for(Task.load("toy"), PROBLEM) == (
        "Q: Tom has 3 apples.\nA:")
    assert ChatTokenizer(folder, system="").prompt_for(Task.load("toy"), PROBLEM) == (
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
