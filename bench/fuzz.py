"""A coverage-guided fuzzer on what reads text from strangers (needs atheris: pip install atheris).

    python bench/fuzz.py extract --minutes 30     # responses of a model: any text, in no time
    python bench/fuzz.py load --minutes 30        # files: JSON lines, config.json, weights, index

A finding is an exception that is no InputError, an answer whose spelling is not its own, or a text
that takes too long. The fuzzer stops at the first, prints it and keeps it in the current folder.
The numbers of each target are kept in --out, bench/results/fuzz.json, beside those of the other.
"""

import importlib.util
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, integer, path_name, run_script

MAX_SECONDS = 1.0  # instrumented code is several times slower; plain code has 0.2 s
PIECES = [  # what the formats are made of; the fuzzer finds the rest
    r"\boxed{", "}", "####", "answer is ", r"\frac{1}{2}", r"\sqrt{", "$", "<think>", "</think>",
    '{"solution": {"House 1": {', '"___"', "```json", "\nQuestion:", "**Answer:**", r"\begin{",
]


def fuzz_extract(data: bytes) -> None:
    from vote import EXTRACTORS, extract_answer, normalize

    text = data.decode("utf-8", errors="replace")
    for task in EXTRACTORS:
        started = time.process_time()
        answer = extract_answer(text, task)
        if time.process_time() - started > MAX_SECONDS:
            raise RuntimeError(f"{task}: takes too long: {text!r}")
        if answer is not None and normalize(answer, task) != answer:
            raise RuntimeError(f"{task}: {answer!r} is not its own spelling: {text!r}")


def edited(document: dict, source: Any) -> dict:
    """A valid document, some of its fields replaced by something else."""
    document = dict(document)
    for _ in range(source.ConsumeIntInRange(0, 3)):
        field = source.PickValueInList(list(document))
        kind = source.ConsumeIntInRange(0, 7)
        if kind == 0:
            document[field] = source.ConsumeIntInRange(-3, 70)
        elif kind == 1:
            document[field] = source.PickValueInList([0, -1, 10**6, 10**30, 2**31, 1e400])
        elif kind == 2:
            document[field] = source.ConsumeFloat()
        elif kind == 3:
            document[field] = source.ConsumeUnicodeNoSurrogates(20)
        elif kind == 4:
            document[field] = source.PickValueInList([None, True, False, [], {}, "", "../a"])
        elif kind == 5:
            document[field] = [document[field], source.ConsumeInt(2)]
        elif kind == 6:
            document[field] = {str(document[field]): document[field]}
        else:
            del document[field]
        if not document:
            break
    return document


CONFIG = {  # a Llama's, small
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "tie_word_embeddings": False, "eos_token_id": 1, "attention_bias": False, "hidden_act": "silu",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}
ROW = {
    "id": 1, "question": "How many?", "problem": "How many?", "puzzle": "Who?", "answer": "1/2",
    "solution": {"header": ["House", "Name"], "rows": [["1", "Ann"]]}, "size": "2*2",
    "header": ["House", "Name", "Food"], "responses": ["#### 1", "no"], "ended": [True, False],
    "greedy": "#### 2", "gold": "1", "prompt": "Q", "chosen": "a", "rejected": "b", "weight": 0.5,
}
INDEX = {"weight_map": {"a": "model.safetensors"}}
RECORD = {"stages": {"M1/pairs.jsonl": {"seconds": 1.0, "code": "a"}},
          "code": {"a": {"vote.py": "b"}}}


def fuzz_load(data: bytes) -> None:
    import atheris

    from common.checkpoint import read_tensors, weight_files
    from common.files import read_responses
    from common.runs import read_stage, read_stages
    from eval import score
    from model import Llama
    from tasks.chat import eos_ids
    from tasks.task import gold_answer, read_problems

    source = atheris.FuzzedDataProvider(data)
    folder = FOLDER
    documents = {"config.json": CONFIG, "pairs.jsonl": ROW, "stages.json": RECORD,
                 "model.safetensors.index.json": INDEX}
    for name, document in documents.items():
        text = json.dumps(edited(document, source)).encode()
        if source.ConsumeIntInRange(0, 9) == 0:  # damaged in one place
            place = source.ConsumeIntInRange(0, len(text))
            text = text[:place] + source.ConsumeBytes(4) + text[place + 1 :]
        (folder / name).write_bytes(text)
    (folder / "one/model.safetensors").write_bytes(source.ConsumeBytes(200))

    def read_all_problems() -> None:
        for task in TASKS:
            for problem in read_problems(folder / "pairs.jsonl", task):
                gold_answer(problem, task.name)
                task.prompt_for(problem, is_chat=True)

    for read in (
        read_all_problems,
        lambda: score(read_responses(folder / "pairs.jsonl"), "toy"),
        lambda: score(read_responses(folder / "pairs.jsonl"), "math"),
        lambda: Llama.on_meta(folder),
        lambda: eos_ids(folder / "config.json"),
        lambda: weight_files(folder),
        lambda: read_stages(folder),
        lambda: read_stage(folder / "pairs.jsonl", None),
        lambda: list(read_tensors(folder / "one", {"a": (1,)}, "cpu")),
    ):
        try:
            read()
        except InputError:
            pass


TASKS: list = []
FOLDER = Path(tempfile.gettempdir())
TARGETS = {"extract": fuzz_extract, "load": fuzz_load}


def fuzz(target: str, minutes: int, stderr: int) -> None:
    """Fuzz in this process, which ends with it; `stderr` gets what the fuzzer says."""
    global FOLDER
    import atheris

    os.dup2(stderr, 2)
    os.close(stderr)
    with atheris.instrument_imports(include=["vote", "tasks", "common", "model"]):
        import model  # noqa: F401
        import vote  # noqa: F401
    from tasks.task import Task

    TASKS.extend(Task.load(name) for name in ("toy", "math", "zebralogic"))
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        corpus = FOLDER / "corpus"
        corpus.mkdir()
        (FOLDER / "one").mkdir()
        for number, piece in enumerate(PIECES):
            (corpus / str(number)).write_text(piece)
        flags = [f"-max_total_time={60 * minutes}", "-timeout=20"]
        flags += ["-max_len=2000", "-len_control=0"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], TARGETS[target])
        atheris.Fuzz()


def numbers_of(lines: Iterable[str]) -> dict[str, int]:
    """How far the fuzzer came, from what it says. It tells of a branch in the code as `cov`."""
    found = {"executions": 0, "coverage": 0}
    for line in lines:
        said = re.match(r"#(\d+)\s+\w+\s+cov: (\d+)", line)
        if said:
            found = {"executions": int(said[1]), "coverage": int(said[2])}
    return found


def shown(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        print(line, end="", flush=True)
        yield line


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("target", choices=TARGETS, help="what is fuzzed")
    parser.add_argument("--minutes", type=integer(1), default=30, help="how long")
    parser.add_argument("--out", type=path_name, default=str(ROOT / "bench/results/fuzz.json"),
                        help="the numbers as JSON")
    args = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        raise InputError("atheris is not installed: pip install atheris")
    reading, writing = os.pipe()
    # In a child, since the fuzzer ends its process. It must not have loaded what is instrumented.
    arguments = (args.target, args.minutes, writing)
    child = multiprocessing.get_context("fork").Process(target=fuzz, args=arguments)
    child.start()
    os.close(writing)
    with open(reading, errors="replace") as lines:
        numbers = numbers_of(shown(lines))
    child.join()
    from common.files import read_json, write_json  # loaded before, it would not be instrumented

    numbers = {"minutes": args.minutes, **numbers, "findings": int(child.exitcode != 0)}
    write_json(args.out, {**read_json(Path(args.out)), args.target: numbers})
    print(f"{numbers}, in {args.out}")
    sys.exit(numbers["findings"])


if __name__ == "__main__":
    run_script(main)
