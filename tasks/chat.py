"""From text to tokens and back: a checkpoint's tokenizer, and the chat format of its family."""

from pathlib import Path

from tokenizers import Tokenizer

from common.cli import InputError
from common.files import read_json
from tasks.task import Task

# How each family of chat models marks turns, and the token that closes one. Base models have none.
CHAT_TEMPLATES = {
    "plain": ("{prompt}", None),
    "chatml": (
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}
MARKS = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}  # a token of each family's


class ChatTokenizer:
    """The text side of a checkpoint: tokenizer, chat template, the tokens that end a response."""

    def __init__(self, folder: str | Path, chat: str = "auto"):
        """chat: a key of CHAT_TEMPLATES, or "auto" to read it off the folder's files.

        Raises InputError for an unusable folder.
        """
        folder = Path(folder)
        self.path = folder / "tokenizer.json"
        self.tokenizer = read_tokenizer(self.path)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = [token.content for token in added if token.special]
        self.chat = self.find_chat(folder) if chat == "auto" else chat
        self.template, closing = CHAT_TEMPLATES[self.chat]
        stops = []
        if closing:
            stops.append(self.tokenizer.token_to_id(closing))
            if stops == [None]:
                advice = f"the tokenizer of {folder} has no {closing} token; try --chat plain"
                raise InputError(f"--chat {chat}: {advice}")
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

    def find_chat(self, folder: Path) -> str:
        """The family whose marks the tokenizer has, if the folder has a chat template at all."""
        has_template = (folder / "chat_template.jinja").exists()
        if has_template or "chat_template" in read_json(folder / "tokenizer_config.json"):
            for chat, mark in MARKS.items():
                if self.tokenizer.token_to_id(mark) is not None:
                    return chat
        return "plain"

    def apply_template(self, text: str) -> str:
        return self.template.replace("{prompt}", text)

    def prompt_for(self, task: Task, problem: dict) -> str:
        """What a model reads of a problem."""
        return self.apply_template(task.prompt_for(problem, self.is_chat))

    def encode_prompt(self, text: str) -> list[int]:
        """The tokenizer adds its own BOS, unless the template has already written one.

        What looks like a special token inside the problem is encoded as the plain text it is.
        """
        before, after = self.template.split("{prompt}")
        with_bos = not before.startswith("<|begin_of_text|>")
        inside = text[len(before) : len(text) - len(after)]
        if not any(token in inside for token in self.special_tokens):
            return self.encode(text, with_bos)
        return self.encode(before, with_bos) + self.encode_plain(inside) + self.encode(after)

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

    def encode_response(self, text: str, ended: bool = True) -> list[int]:
        """A response as it is trained on: apart from its prompt, with EOS if it was not cut off."""
        ids = self.encode_plain(text)
        return [*ids, self.eos_id] if ended else ids

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def newline_ids(self) -> list[int]:
        """Every token with a line break: they end a new problem, which is one line."""
        return [i for i in range(self.tokenizer.get_vocab_size()) if "\n" in self.decode([i])]


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
