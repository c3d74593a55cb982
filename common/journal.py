"""Finished batches of a stage of sampling, on disk until the stage is: a stop loses one at most."""

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from common.checkpoint import weight_files
from common.distributed import on_main, rank
from common.files import batches_of, flush, writing
from common.runs import fingerprint


class Journal:
    """Batches by key, in `NAME.batches-RANK` beside the stage's file. Each rank adds to its own.

    The key of a batch says all that its responses depend on. So one that other weights or other
    code have made is never asked for again.
    """

    def __init__(self, path: str | Path, folder: str | Path, args: Namespace):
        """path: the file that is to be made. folder: of the model that samples."""
        self.path, self.dtype = Path(path), args.dtype
        # As rank 0 sees them: a copy on another machine may have another date, and ranks that
        # ask for other keys would not agree on what is left to do.
        self.code, self.weights = on_main(code_and_weights, Path(folder))
        self.batches: dict[str, list] = on_main(self.read)

    def read(self) -> dict[str, list]:
        found = {}
        for file in self.path.parent.glob(batches_of(self.path)):
            for line in file.read_bytes().split(b"\n"):
                try:
                    key, responses = json.loads(line)
                    found[key] = responses
                except (ValueError, TypeError, RecursionError):  # the process died in this line
                    continue
        return found

    def key(self, *what: Any) -> str:
        everything = [self.code, self.dtype, self.weights, *what]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()

    def add(self, key: str, responses: list) -> None:
        file = self.path.with_name(f"{self.path.name}.batches-{rank()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file), open(file, "a") as lines:
            lines.write("\n" + json.dumps([key, responses]))  # the line before may be half of one
            flush(lines)


def code_and_weights(folder: Path) -> tuple[str, list[tuple]]:
    """What tells this code, and the model in a folder, from others."""
    weights = []
    for file in [folder / "config.json", *weight_files(folder)]:
        stat = file.stat()
        weights.append((file.name, stat.st_size, stat.st_mtime_ns))
    return fingerprint()[0], weights
