"""A Hugging Face checkpoint folder: what config.json says, and weights in one or several files."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from common.cli import InputError
from common.distributed import rank
from common.files import flush, read_json, write_json, writing

SHARD_BYTES = 5 * 10**9  # of one file; a larger checkpoint is split and gets an index
MOST_LAYERS = 1000  # of layers and of heads
LARGEST_SIZE = 10**7  # of all else
LONGEST_CONTEXT = 10**9  # tokens
# By model_type, what must be stated: left out, transformers takes other numbers than Llama's.
FAMILIES = {
    "llama": (),
    "mistral": ("num_key_value_heads",),
    "qwen2": ("num_key_value_heads",),
    "qwen3": ("num_key_value_heads", "head_dim"),
}
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def llama_fields(hf_config: dict, source: str) -> dict:
    """The fields of `model.Config` in a parsed `config.json`.

    Qwen2, Qwen3 and Mistral are Llamas that differ in a few of these fields. Raises InputError,
    naming `source` and the field, for what is no Llama or makes no sense.
    """
    family, hidden_act = hf_config.get("model_type"), hf_config.get("hidden_act", "silu")
    known = list(FAMILIES)
    check(source, "model_type", family, lambda v: v in known, "one of " + ", ".join(known))
    check(source, "hidden_act", hidden_act, lambda v: v == "silu", "'silu'")
    check_full_attention(hf_config, source)
    fields = {}
    for name, most in (
        ("vocab_size", LARGEST_SIZE),
        ("hidden_size", LARGEST_SIZE),
        ("intermediate_size", LARGEST_SIZE),
        ("num_hidden_layers", MOST_LAYERS),
        ("num_attention_heads", MOST_LAYERS),
    ):
        fields[name] = check_size(source, name, hf_config.get(name), most)
    n_heads = fields["num_attention_heads"]
    for name, default in (
        ("num_key_value_heads", n_heads),
        ("head_dim", fields["hidden_size"] // n_heads),
    ):
        value = hf_config.get(name)
        if value is None and name not in FAMILIES[family]:
            value = default
        fields[name] = check_size(source, name, value, LARGEST_SIZE)
    check(source, "head_dim", fields["head_dim"], lambda v: v % 2 == 0, "even, for RoPE")
    if n_heads % fields["num_key_value_heads"]:
        rule = "num_attention_heads must be a multiple of num_key_value_heads"
        raise InputError(f"{source}: {rule}")
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        value = hf_config.get(name) or False
        fields[name] = check(source, name, value, lambda v: type(v) is bool, "true or false")
    # What a family always has, or never, its config.json does not say.
    fields["qk_norm"] = family == "qwen3"
    fields["attention_bias"] = family == "qwen2" or fields["attention_bias"] and family != "mistral"
    fields["attention_output_bias"] = fields["attention_bias"] and family != "qwen2"
    fields["mlp_bias"] = fields["mlp_bias"] and family == "llama"
    eps = hf_config.get("rms_norm_eps", 1e-6)
    fields["rms_norm_eps"] = check(source, "rms_norm_eps", eps, is_positive, "a number above 0")
    fields["rope"] = rope_fields(hf_config, source)
    if hf_config.get("max_position_embeddings") is not None:
        context = hf_config["max_position_embeddings"]
        check_size(source, "max_position_embeddings", context, LONGEST_CONTEXT)
    return fields


def check_full_attention(hf_config: dict, source: str) -> None:
    """Every layer must look at all tokens. Many folders name a window that no layer uses."""
    layers, family = hf_config.get("layer_types") or [], hf_config["model_type"]
    full = ["full_attention"]
    check(source, "layer_types", layers, lambda v: type(v) is list and v == full * len(v),
          "'full_attention' in every layer")
    if family in ("qwen2", "qwen3"):
        windows = hf_config.get("use_sliding_window")
        check(source, "use_sliding_window", windows, lambda v: v in (None, False), "false")
    if family == "mistral":
        context = hf_config.get("max_position_embeddings")
        window = hf_config.get("sliding_window", 4096)  # that of transformers, if none is stated
        check(source, "sliding_window", window,
              lambda v: v is None or type(v) is type(context) is int and v >= context,
              "null, or at least max_position_embeddings")


def rope_fields(hf_config: dict, source: str) -> dict:
    """The numbers of RoPE in a `config.json`, whichever release of transformers wrote it."""
    # transformers 5 has one `rope_parameters`; before, `rope_theta` and perhaps `rope_scaling`.
    given = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    check(source, "rope_parameters or rope_scaling", given, lambda v: type(v) is dict, "an object")
    nested = any(isinstance(value, dict) for value in given.values())
    check(source, "rope_parameters", given, lambda v: not nested, "the same for all layers")
    rope = {
        "rope_theta": hf_config.get("rope_theta", 10000.0),
        "rope_type": given.get("type", "default"),
        **given,
    }
    kinds = ("default", "llama3")
    check(source, "rope_type", rope["rope_type"], lambda v: v in kinds, "'default' or 'llama3'")
    needed = ["rope_theta"]
    if rope["rope_type"] == "llama3":
        needed += ["factor", "low_freq_factor", "high_freq_factor"]
        needed += ["original_max_position_embeddings"]
    for name in needed:
        check(source, name, rope.get(name), is_positive, "a number above 0")
    return rope


def check(source: str, name: str, value: Any, accept: Callable[[Any], bool], rule: str) -> Any:
    """The value of a field, if it keeps the rule."""
    if not accept(value):
        raise InputError(f"{source}: {name} must be {rule}, found {str(value)[:40]!r}")
    return value


def check_size(source: str, name: str, value: Any, most: int) -> int:
    rule = f"a whole number from 1 to {most:,}"
    return check(source, name, value, lambda v: type(v) is int and 1 <= v <= most, rule)


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0 that a float can hold; true, infinity and NaN are not."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def read_tensors(
    folder: Path, expected: dict[str, tuple], device: str | torch.device, tied: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint folder, in turn: exactly the expected names and shapes.

    tied: a head that is saved, but not expected, must equal the embeddings.
    Raises InputError naming the file for a tensor that is missing, left over, or of another shape.
    """
    missing, head, embeddings = dict(expected), None, None
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in file.keys():
                    if name.endswith("rotary_emb.inv_freq"):  # a table of some Llama 2 folders
                        continue
                    if name == "lm_head.weight" and name not in expected:  # tied, and yet saved
                        head = file.get_tensor(name) if tied else None
                        continue
                    shape = tuple(file.get_slice(name).get_shape())
                    wanted = missing.pop(name, None)
                    if wanted is None:
                        reason = "does not belong to this config.json"
                        raise InputError(f"{path}: tensor {name} {reason}")
                    if shape != wanted:
                        reason = f"is {shape}, config.json asks {wanted}"
                        raise InputError(f"{path}: tensor {name} {reason}")
                    tensor = file.get_tensor(name)
                    if tensor.dtype not in WEIGHT_TYPES:
                        reason = f"has the type {tensor.dtype}; quantized weights are not read"
                        raise InputError(f"{path}: tensor {name} {reason}")
                    if not tensor.isfinite().all():
                        reason = "holds NaN or infinity: the weights are broken"
                        raise InputError(f"{path}: tensor {name} {reason}")
                    if tied and name == "model.embed_tokens.weight":
                        embeddings = tensor
                    yield name, tensor
        except (SafetensorError, OSError) as error:
            reason = f"not a readable safetensors file ({error}); copy it again"
            raise InputError(f"{path}: {reason}") from error
    if missing:
        reason = f"tensors are missing from the weights, the first is {min(missing)}"
        raise InputError(f"{folder}: {len(missing)} {reason}")
    if head is not None and not torch.equal(head, embeddings):
        reason = "ties lm_head.weight to the embeddings, but it is saved and differs from them"
        raise InputError(f"{folder}/config.json: {reason}; set tie_word_embeddings to false")


@torch.no_grad()
def read_into(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors, of which a rank may hold only a part, from a checkpoint folder.

    Read one after the other, so that no rank ever holds more than its parts and one whole tensor.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    device = next(iter(tensors.values())).device
    for name, whole in read_tensors(folder, shapes, device):
        target = tensors[name]
        if isinstance(target, DTensor):
            whole = whole.to(target.dtype)
            mesh, placements = target.device_mesh, target.placements
            whole = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        target.copy_(whole)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: the single one, or the shards in its index."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            reason = "has neither model.safetensors nor model.safetensors.index.json"
            raise InputError(f"{folder}: {reason}")
        return [folder / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: its weight_map names no file")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            reason = f"its weight_map names {str(name)[:40]!r}, which is no file of this folder"
            raise InputError(f"{index}: {reason}")
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if not shard.exists():
            reason = f"no such file, but {index.name} names it; copy the missing shard"
            raise InputError(f"{shard}: {reason}")
    return shards


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as one `model.safetensors`, or as several and an index if there are too many.

    Of sharded tensors every rank must call this: they are put together one after the other, and
    rank 0 writes them.
    """
    files = split_by_bytes(tensors)
    weight_map = {}
    for number, names in enumerate(files, 1):
        file = "model.safetensors"
        if len(files) > 1:
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        whole = {}
        for name in names:
            tensor = tensors[name].detach()
            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor()
            if rank() == 0:
                whole[name] = tensor.cpu().contiguous()
            weight_map[name] = file
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_whole(whole, folder / file)
    if rank() == 0 and len(files) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def save_whole(tensors: dict[str, Tensor], path: Path) -> None:
    """Write one safetensors file; when it returns, all is on the disk."""
    with writing(path):
        try:
            save_file(tensors, path, metadata={"format": "pt"})
        except SafetensorError as error:  # with the system's number of the error in its text
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else None, str(error)) from error
        with open(path, "rb") as file:
            flush(file)


def split_by_bytes(tensors: dict[str, Tensor]) -> list[list[str]]:
    """The names of the tensors of each file, in order."""
    files, size = [[]], 0
    for name, tensor in tensors.items():
        tensor_size = tensor.numel() * tensor.element_size()
        if files[-1] and size + tensor_size > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += tensor_size
    return files
