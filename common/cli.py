"""The command lines: a user's mistake gets one line that says what to do, and exit code 2."""

import argparse
import errno
import math
import sys
import traceback
from collections.abc import Callable


FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it
FREE_SPACE = "; free some space, then the same command goes on"


class InputError(Exception):
    """A user's mistake: one line that names the file, line or option, and what to do about it."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description, and shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a mistake is one line without the usage before it."""

    def __init__(self, description: str | None, **kwargs):
        super().__init__(
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> None:
        raise InputError(message)


LARGEST = 10**6  # of a whole number


def integer(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """A type for `add_argument`: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}: must be at least {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text!r}: must be at most {most:,}")
        return value

    return parse


def path_name(text: str) -> str:
    """A type for `add_argument`: the name of a file or a folder."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r}: must be the name of a file or a folder")
    return text


def path_or_none(text: str) -> str | None:
    """The same, but '' is none."""
    return path_name(text) if text else None


def real(accept: Callable[[float], bool], rule: str) -> Callable[[str], float]:
    """A type for `add_argument`: a finite number that `accept` takes; `rule` says which."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not accept(value):
            raise argparse.ArgumentTypeError(f"{text!r}: {rule}")
        return value

    return parse


def run_script(main: Callable[[], None], leave: Callable[[int], None] = sys.exit) -> None:
    """Run a script; a mistake, a full disk or too little memory ends it with one line and code 2.

    leave: how the process ends, with an exit code.
    """
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is kept", file=sys.stderr)
        leave(130)
    except Exception as error:
        explanation = explain(error)
        if explanation:
            print(f"error: {printable(explanation)}", file=sys.stderr)
            leave(2)
        if leave is sys.exit:
            raise
        traceback.print_exc()
        leave(1)


def explain(error: Exception) -> str | None:
    """One line for what a user can do something about; None for a defect of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return str(error) + (FREE_SPACE if error.errno in FULL else "")
    if isinstance(error, (RuntimeError, MemoryError)):
        first_line = str(error).split("\n")[0]
        if "by peer" in first_line:  # gloo's "Connection closed by peer"
            return "another process of this run has ended; what it says is the reason"
        if "memory" in first_line or isinstance(error, MemoryError):
            return f"out of memory ({first_line}); {LESS_MEMORY}"
    return None


def printable(text: str) -> str:
    """A text of a model or a file on one line, its control characters escaped.

    A terminal would obey them: they can move the cursor, hide text, write to the clipboard.
    """
    shown = []
    for character in text:
        visible = character.isprintable() or character == " "
        shown.append(character if visible else ascii(character)[1:-1])
    return "".join(shown)


LESS_MEMORY = (
    "lower --max-num-seqs when sampling, --micro-batch-size when training, or --max-new-tokens"
)
