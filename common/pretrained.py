"""A model in a Hugging Face folder: loaded by its own names, saved so that others load it."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from common.checkpoint import read_tensors, write_tensors
from common.cli import InputError
from common.distributed import rank
from common.files import read_json, write_json


class PreTrained(nn.Module):
    """A model that lives in a folder: `config.json` and `model.safetensors`, or its shards."""

    config_class: type  # of the class that inherits; its from_dict reads a config.json
    folder: str | Path = "the model"  # that it was read from

    def __init__(self, config: Any, hf_config: dict):
        super().__init__()
        self.config = config
        self.hf_config = hf_config  # config.json as it was read: saving loses no field

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def context_length(self) -> int:
        """The most tokens that the model was trained to read; no limit if config.json has none."""
        return self.hf_config.get("max_position_embeddings") or 2**31

    @classmethod
    def on_meta(cls, folder: str | Path) -> Self:
        """The model of a folder's `config.json`, without weights. Raises InputError."""
        path = Path(folder) / "config.json"
        if not path.exists():
            raise InputError(f"{path}: no such file; a Hugging Face checkpoint folder has one")
        hf_config = read_json(path)
        config = cls.config_class.from_dict(hf_config, str(path))
        with torch.device("meta"):
            return cls(config, hf_config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a checkpoint folder: every tensor with its exact shape, none missing or left over.

        Raises InputError naming the file and what is wrong with it.
        """
        model = cls.on_meta(folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = {}
        tied = model.config.tie_word_embeddings
        for name, tensor in read_tensors(Path(folder), shapes, device, tied):
            state[name] = tensor.to(dtype)
        model.load_state_dict(state, assign=True)
        model.folder = folder
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, `transformers` and vLLM load.

        Every rank must call this if the model is sharded.
        """
        folder = Path(folder)
        write_tensors(folder, self.state_dict())
        if rank() == 0:
            dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
            hf_config = {**self.hf_config, "dtype": dtype}
            hf_config.pop("torch_dtype", None)  # the older name of "dtype"
            write_json(folder / "config.json", dict(sorted(hf_config.items())))
