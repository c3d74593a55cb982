"""What the speed comparisons share: the machine's limit, FLOPs of a job, rows of results."""

import platform
import time
from pathlib import Path
from statistics import median

import torch

from common.cli import ArgumentParser, integer
from common.files import read_json, write_json
from model import Llama
from sample import Response
from tasks.chat import ChatTokenizer
from tasks.task import Task, read_problems, task_names

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 2.0  # of products, to measure the limit


def matrix_limit(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the largest plain matrix product that one would call usual: 2048 · 2048 · 2048."""
    a, b = torch.randn(2, 2048, 2048, device=device).to(dtype)
    rates, ends = [], time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        started = time.perf_counter()
        product = a @ b
        product[0, 0].item()  # waits for a GPU
        rates.append(2 * 2048**3 / (time.perf_counter() - started))
    return median(rates)


def sampling_flops(
    model: Llama, prompts: list[list[int]], responses: list[list[Response]]
) -> float:
    """Floating point operations of k responses to each prompt, which is read once.

    2 per weight and token; the vocabulary's projection for each drawn token. Attention takes two
    products of n_heads · head_dim multiplications for each pair of tokens.
    """
    config = model.config
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = 0.0
    for prompt, row in zip(prompts, responses, strict=True):
        flops += 2 * blocks * len(prompt) + 2 * width * len(prompt) ** 2
        for response in row:
            n = len(response.tokens)
            flops += 2 * (blocks + head) * n + 4 * width * n * (len(prompt) + n / 2)
    return flops


def add_job_options(parser: ArgumentParser) -> None:
    """Whose prompts a model answers, and how."""
    add = parser.add_argument
    add("--model", default=str(ROOT / "tasks/toy/model"), help="checkpoint folder")
    add("--task", default="toy", choices=task_names(), help="whose prompts to read")
    add("--problems", default=str(ROOT / "tasks/toy/train.jsonl"), help="JSON lines, `question`")
    add("--k", type=integer(1), default=8, help="samples per problem")
    add("--max-new-tokens", type=integer(1), default=64, help="a longer response is cut off")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights")


def read_prompts(path: str, task: Task, tokenizer: ChatTokenizer, count: int) -> list[list[int]]:
    """The first prompts of a file of problems, in tokens."""
    prompts = []
    for problem in read_problems(path, task, count):
        prompts.append(tokenizer.encode_prompt(tokenizer.prompt_for(task, problem)))
    return prompts


def machine(device: torch.device) -> str:
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def keep_row(path: str, name: str, row: dict) -> None:
    """Put a row of results under its name into a JSON file."""
    rows = read_json(Path(path))
    rows[name] = row
    write_json(Path(path), rows)
