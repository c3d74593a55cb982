"""From text to tokens and back: a checkpoint's tokenizer, and the chat format of its family."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from common.cli import InputError
from common.files import read_json
from tasks.task import Task
from vote import NEXT_QUESTION


@dataclass(frozen=True)
class ChatFormat:
    """How a family of chat models marks turns. Base models have one without marks."""

    told_by: str | None  # what the Jinja template of its folders holds
    turns: str  # with {system}, where the system turn goes if there is one, and {prompt}
    system: str = ""  # the system turn, with {text}
    closing: str | None = None  # the token that closes a response, if it is not the folder's EOS
    trims: bool = False  # white space around a prompt is dropped


CHATML = ChatFormat(
    "<|im_start|>",
    "{system}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\n{text}<|im_end|>\n",
    "<|im_end|>",
)
# By name; a folder is of the first whose `told_by` its template holds.
CHAT_FORMATS = {
    "plain": ChatFormat(None, "{prompt}"),
    # Of Qwen3's two ways to answer the one without thinking: its thoughts are there, and empty.
    "qwen3": ChatFormat(
        "enable_thinking", CHATML.turns + "<think>\n\n</think>\n\n", CHATML.system, CHATML.closing),
    "chatml": CHATML,  # Qwen2, SmolLM2
    "deepseek": ChatFormat(
        "<｜User｜>", "{system}<｜User｜>{prompt}<｜Assistant｜>", "{text}",
        "<｜end▁of▁sentence｜>"),
    "llama3": ChatFormat(
        "<|start_header_id|>",
        "{system}<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|start_header_id|>system<|end_header_id|>\n\n{text}<|eot_id|>",
        "<|eot_id|>",
        trims=True,
    ),
    "llama2": ChatFormat(
        "<<SYS>>", "[INST] {system}{prompt} [/INST]", "<<SYS>>\n{text}\n<</SYS>>\n\n", trims=True),
    "mistral": ChatFormat("[INST]", "[INST] {system}{prompt} [/INST]", "{text}\n\n"),
}
# The system turn of Llama 3.1 and 3.2. Today is any day there; here it is the one that the template
# of 3.1 names, so that a run does not depend on the day.
LLAMA31_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


class ChatTokenizer:
    """The text side of a checkpoint: tokenizer, chat format, the tokens that end a response."""

    def __init__(self, folder: str | Path, chat: str = "auto", system: str | None = None):
        """chat: a key of CHAT_FORMATS, or "auto" to read it off the folder's template.

        system: the system turn, "" for none; by default the one that the folder's template adds.
        Raises InputError for an unusable folder.
        """
        folder = Path(folder)
        self.path = folder / "tokenizer.json"
        self.tokenizer = read_tokenizer(self.path)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = [token.content for token in added if token.special]
        jinja = read_template(folder)
        self.chat = find_chat(jinja, folder) if chat == "auto" else chat
        if system and not self.is_chat:
            advice = "is not recognized as a chat model, which alone has a system turn"
            raise InputError(f"--system: {folder} {advice}; leave it out, or give --chat")
        self.format = CHAT_FORMATS[self.chat]
        if system is None:
            system = default_system(jinja) if self.is_chat else ""
        self.before, self.after = turns_around_prompt(self.format, system, jinja)
        # A chat template writes BOS or leaves it out. Else the tokenizer adds its own.
        bos = bos_token(folder) if self.is_chat and "bos_token" in jinja else ""
        self.before = bos + self.before
        self.adds_bos = not bos and not (self.is_chat and jinja)
        stops = []
        if self.format.closing:
            stops.append(self.tokenizer.token_to_id(self.format.closing))
            if stops == [None]:
                advice = f"has no {self.format.closing} token; try --chat plain"
                raise InputError(f"--chat {chat}: the tokenizer of {folder} {advice}")
        for name in ("generation_config.json", "config.json"):
            stops += eos_ids(folder / name)
        if not stops:
            reason = "neither generation_config.json nor config.json names an eos_token_id"
            raise InputError(f"{folder}: {reason}")
        self.eos_id = stops[0]  # what a response is trained to end with
        self.stop_ids = sorted(set(stops))

    @property
    def is_chat(self) -> bool:
        return self.chat != "plain"

    def apply_template(self, text: str) -> str:
        return self.before + (text.strip() if self.format.trims else text) + self.after

    def prompt_for(self, task: Task, problem: dict) -> str:
        """What a model reads of a problem."""
        return self.apply_template(task.prompt_for(problem, self.is_chat))

    def stop_strings(self, task: Task) -> Sequence[str]:
        """What ends a response of a base model that goes on with a question of its own making."""
        return NEXT_QUESTION if task.runs_on and not self.is_chat else ()

    def response_row(
        self, task: Task, problem: dict, sampled: Sequence[tuple[list[int], bool]]
    ) -> dict:
        """A line of responses.jsonl, whatever engine has sampled.

        sampled: the tokens of each response, without the one that ended it, and whether one did.
        """
        row = {"id": problem["id"], "question": problem["question"]}
        row["prompt"] = self.prompt_for(task, problem)
        texts, ended, ids = [], [], []
        for tokens, stopped in sampled:
            text = self.decode(tokens)
            kept = before_stop(text, self.stop_strings(task))
            texts.append(kept)
            ended.append(stopped or len(kept) < len(text))
            ids.append(tokens if kept == text else self.tokens_of(kept, tokens))
        return {**row, "responses": texts, "ended": ended, "response_ids": ids}

    def encode_prompt(self, text: str) -> list[int]:
        """What looks like a special token inside the problem is encoded as the plain text it is."""
        inside = text[len(self.before) : len(text) - len(self.after)]
        if not any(token in inside for token in self.special_tokens):
            return self.encode(text, self.adds_bos)
        before = self.encode(self.before, self.adds_bos)
        return before + self.encode_plain(inside) + self.encode(self.after)

    def encode_plain(self, text: str) -> list[int]:
        self.tokenizer.encode_special_tokens = True  # the library's name for "as plain text"
        ids = self.encode(text)
        self.tokenizer.encode_special_tokens = False
        return ids

    def encode(self, text: str, with_bos: bool = False) -> list[int]:
        try:
            return self.tokenizer.encode(text, add_special_tokens=with_bos).ids
        except Exception as error:  # the library raises nothing more exact
            raise InputError(f"{self.path}: cannot encode {text[:40]!r} ({error})") from error

    def encode_response(
        self, text: str, ended: bool = True, sampled: list[int] | None = None
    ) -> list[int]:
        """A response as it is trained on: apart from its prompt, with EOS if it was not cut off.

        sampled: the tokens that the model drew. A text may be spelled in many ways, and encoding it
        finds the usual one, not always the one that was sampled. EOS is `eos_id`, whichever of the
        stop tokens the model drew.
        """
        ids = self.encode_plain(text) if sampled is None else sampled
        return [*ids, self.eos_id] if ended else ids

    def tokens_of(self, text: str, tokens: list[int]) -> list[int] | None:
        """The first of these tokens, as many as make the text; None if it ends within one."""
        for end in range(len(tokens), -1, -1):
            said = self.decode(tokens[:end])
            if said == text or len(said) < len(text):
                return tokens[:end] if said == text else None

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def newline_ids(self) -> list[int]:
        """Every token with a line break: they end a new problem, which is one line."""
        return [i for i in range(self.tokenizer.get_vocab_size()) if "\n" in self.decode([i])]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def read_template(folder: Path) -> str:
    """The folder's chat template, a text in the language Jinja; empty if it has none."""
    path, name = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    jinja = read_json(name).get("chat_template") or ""
    if isinstance(jinja, list) and all(isinstance(named, dict) for named in jinja):
        templates = {str(named.get("name")): named.get("template") for named in jinja}
        jinja = templates.get("default", "")
    if not isinstance(jinja, str):
        raise InputError(f"{name}: chat_template must be a text, found {str(jinja)[:40]!r}")
    return jinja


def find_chat(jinja: str, folder: Path) -> str:
    """The family that a folder's template belongs to; "plain" if it has none."""
    for chat, format_ in CHAT_FORMATS.items():
        if format_.told_by and format_.told_by in jinja:
            return chat
    if jinja:
        known = ", ".join(CHAT_FORMATS)
        raise InputError(f"{folder}: its chat template is of no family that is known here; give "
                         f"--chat, one of {known}; plain makes it a base model")
    return "plain"


def default_system(jinja: str) -> str:
    """The system turn that a template adds to a conversation that has none.

    It is looked for as it is written, for Jinja is not run: a whole turn in one pair of quotes.
    """
    if LLAMA31_SYSTEM.partition("\n")[0] in jinja:
        return LLAMA31_SYSTEM
    turn = re.search(r"""<\|im_start\|>system(?:\n|\\n)((?:\\.|[^'"\\<])+)<\|im_end\|>""", jinja)
    if turn is None:
        return ""
    return re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), turn[1])


def turns_around_prompt(format_: ChatFormat, system: str, jinja: str) -> tuple[str, str]:
    """What stands before and after a prompt. Some families' templates differ a little."""
    before, after = format_.turns.split("{prompt}")
    for mark in ("[INST]", "[/INST]"):  # Mistral's, with or without spaces
        written = re.search(rf"""(['"])( ?{re.escape(mark)} ?)\1""", jinja)
        if written:
            before = re.sub(rf" ?{re.escape(mark)} ?", written[2], before)
            after = re.sub(rf" ?{re.escape(mark)} ?", written[2], after)
    if "<｜Assistant｜><think>" in jinja:  # later R1 templates begin the thoughts
        after += "<think>\n"
    turn = format_.system.replace("{text}", system) if system else ""
    return before.replace("{system}", turn), after


def bos_token(folder: Path) -> str:
    """The token that begins a text, as the tokenizer's settings name it."""
    token = read_json(folder / "tokenizer_config.json").get("bos_token") or ""
    return token["content"] if isinstance(token, dict) else token


def eos_ids(path: Path) -> list[int]:
    """The tokens that end a text, as a checkpoint's JSON file has them: none, one, or a list."""
    ids = read_json(path).get("eos_token_id")
    if ids is None:
        return []
    if not isinstance(ids, list):
        ids = [ids]
    if not all(type(i) is int and i >= 0 for i in ids):
        rule = "must be a token's number, or a list of them"
        raise InputError(f"{path}: eos_token_id {rule}, found {str(ids)[:40]}")
    return ids


def read_tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        reason = "has no tokenizer.json; copy it from the original checkpoint"
        raise InputError(f"{path.parent}: {reason}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more exact
        raise InputError(f"{path}: not a tokenizer file ({error})") from error
    tokenizer.no_truncation()  # settings of some folders, which would cut prompts silently
    tokenizer.no_padding()
    return tokenizer
