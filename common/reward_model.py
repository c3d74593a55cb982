"""A reward model in the layout of ArmoRM (arXiv 2406.12845; RLHFlow/ArmoRM-Llama3-8B-v0.1).

IRPO_RM, one of the paper's baselines, asks it which of k responses is best and which is worst.
"""

from argparse import Namespace
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checkpoint import LARGEST_SIZE, MOST_LAYERS, check_size, is_positive
from common.cli import InputError
from common.distributed import all_gather_dict, progress_bar, rank, world_size
from common.options import load_checkpoint
from common.packing import collate
from common.pretrained import PreTrained
from model import Config, Transformer
from tasks.chat import ChatTokenizer

SETTINGS = ("num_objectives", "gating_hidden_dim", "gating_n_hidden", "gating_temperature")


class RewardModel(PreTrained):
    """A Llama whose head scores num_objectives qualities; a gate weighs them by the prompt.

    With one objective the gate is constant: a Bradley-Terry model with a linear head.
    """

    config_class = Config

    def __init__(self, config: Config, hf_config: dict):
        super().__init__(config, hf_config)
        self.model = Transformer(config)
        if not all(is_positive(hf_config.get(name)) for name in SETTINGS):
            raise InputError(
                f"the config.json of a reward model names {', '.join(SETTINGS)}, each above 0; is "
                "this a language model's folder?")
        sizes = []
        for name, most in zip(SETTINGS, (LARGEST_SIZE, LARGEST_SIZE, MOST_LAYERS)):
            sizes.append(check_size("config.json", name, hf_config[name], most))
        n_objectives, temperature = sizes[0], hf_config["gating_temperature"]
        self.regression_layer = nn.Linear(config.hidden_size, n_objectives, bias=False)
        # Takes what verbosity explains out of each objective.
        self.register_buffer("reward_transform_matrix", torch.eye(n_objectives))
        self.gating = Gating(config.hidden_size, *sizes, temperature)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """`dtype` is that of the body; the heads are small, and fp32 keeps the scores apart."""
        model = super().from_pretrained(folder, torch.float32, device)
        model.model.to(dtype)
        return model

    def forward(self, tokens: Tensor, prompt_ends: Tensor, response_ends: Tensor) -> Tensor:
        """Scores (B,) of conversations tokens (B, T), padded on the right.

        prompt_ends, response_ends (B,): the positions of the token that closes the prompt, where
        the gate reads, and of the one that closes the response, where the objectives read.
        """
        hidden = self.model(tokens).float()  # (B, T, hidden_size); in bf16 scores would tie
        row = torch.arange(len(tokens), device=tokens.device)
        rewards = self.regression_layer(hidden[row, response_ends])  # (B, num_objectives)
        rewards = rewards @ self.reward_transform_matrix
        weights = self.gating(hidden[row, prompt_ends])  # (B, num_objectives)
        return (weights * rewards).sum(-1)


class Gating(nn.Module):
    """One weight per objective, from the prompt's final hidden state (B, hidden_size)."""

    def __init__(
        self, hidden_size: int, n_objectives: int, inner: int, n_hidden: int, temperature: float
    ):
        super().__init__()
        sizes = [hidden_size, *[inner] * n_hidden, n_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.softmax(self.layers[-1](x) / self.temperature, dim=-1) * self.logit_scale


def make_rewards(responses: list[dict], args: Namespace, t: int) -> list[dict]:
    """The lines of rewards.jsonl: the score of each of the k responses."""
    judge, tokenizer = load_checkpoint(
        args.reward_model, "auto", args.device, args.dtype, kind=RewardModel,
        option="--reward-model")
    batch_size = max(1, args.max_num_seqs // args.k)  # whole conversations: no prompt is shared
    scores = reward_responses(judge, tokenizer, responses, batch_size, f"M{t}: rewards")
    return [{"id": row["id"], "rewards": rewards} for row, rewards in zip(responses, scores)]


@torch.inference_mode()
def reward_responses(
    model: RewardModel, tokenizer: ChatTokenizer, rows: list[dict], batch_size: int, desc: str = ""
) -> list[list[float]]:
    """The score of each of the k responses in each row, read as conversations of one turn."""
    conversations, prompt_ends = [], []
    for row in rows:
        for response in row["responses"]:
            prompt, answer, prompt_end = one_turn(tokenizer, row["question"], response)
            conversations.append((prompt, answer))
            prompt_ends.append(prompt_end)
    lengths = [len(prompt) + len(answer) for prompt, answer in conversations]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)  # alike lengths: little padding
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    scores = {}
    for batch in progress_bar(iterable=batches[rank() :: world_size()], desc=desc, unit="batch"):
        tokens, *_ = collate([conversations[i] for i in batch])  # (B, T)
        ends = torch.tensor([(prompt_ends[i], lengths[i] - 1) for i in batch])  # (B, 2)
        ends = ends.to(model.device)
        values = model(tokens.to(model.device), ends[:, 0], ends[:, 1])  # (B,)
        scores.update(zip(batch, values.tolist()))
    scores = all_gather_dict(scores)
    flat = iter(range(len(lengths)))
    return [[scores[next(flat)] for _ in row["responses"]] for row in rows]


def one_turn(
    tokenizer: ChatTokenizer, question: str, response: str
) -> tuple[list[int], list[int], int]:
    """Prompt, response, and the position of the token that closes the user's turn.

    The user's turn is the bare question. A chat template trims both texts.
    """
    if not tokenizer.is_chat:
        prompt = tokenizer.encode_prompt(question)
        return prompt, tokenizer.encode_response(response), len(prompt) - 1
    prompt = tokenizer.encode_prompt(tokenizer.apply_template(question.strip()))
    closes = len(prompt) - 1 - prompt[::-1].index(tokenizer.eos_id)
    return prompt, tokenizer.encode_response(response.strip()), closes
