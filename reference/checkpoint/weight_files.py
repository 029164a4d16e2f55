"""Which files of a directory hold the weights, and reading each kind.

The first kind that is there is taken: safetensors, then torch's, then Paddle's. An index file names the shards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.files import HUGGINGFACE_WEIGHTS_FILES, PADDLE_WEIGHTS_FILE
from .paddle_pickle import read_pickle
from .safetensors_file import map_file, read_safetensors
from .stored_tensor import StoredTensor

WEIGHT_FILES = (*HUGGINGFACE_WEIGHTS_FILES, PADDLE_WEIGHTS_FILE)


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint directory.

    Raises FileNotFoundError that says what was looked for; NotADirectoryError for a file.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such directory")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a checkpoint directory, got a file")
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return shards(folder / name) if name.endswith(".index.json") else (folder / name,)
    raise FileNotFoundError(f"{folder}: not a checkpoint: looked for {', '.join(WEIGHT_FILES)}")


def shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, each once. Raises ValueError, FileNotFoundError."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        found = list(dict.fromkeys(weight_map.values()))
        # A name with a folder in it could point anywhere.
        good = bool(found) and all(isinstance(name, str) and Path(name).name == name for name in found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ValueError(f'{index}: expected {{"weight_map": {{weight: name of a file beside it}}}}')
    for name in found:
        # Not `Path.is_file`, which raises for a name that is too long.
        if not os.path.isfile(index.parent / name):
            raise FileNotFoundError(f"{index}: names the file {name!r}, which is not there")
    return tuple(index.parent / name for name in found)


def read_weights(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of these files, by name. Raises ValueError that names a damaged file, or a tensor that is in two."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors = read_safetensors(path)
        elif path.suffix == ".pdparams":
            arrays = read_pickle(str(path), map_file(path))
            # Paddle has no uint16 weights: it stores bfloat16 so.
            tensors = {name: StoredTensor.of(name, array, bfloat16=True) for name, array in arrays.items()}
        else:
            tensors = read_torch(path)
        for name in tensors:
            if name in found:
                raise ValueError(f"{path}: {name} is in another file of this checkpoint too")
        found |= tensors
    return found


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a `.bin` file, through torch, which runs nothing that the file asks for.

    Raises ImportError that says what to install if torch is missing; ValueError if the file is damaged or refused.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: reading a .bin file needs torch: pip install torch, or convert it to model.safetensors elsewhere"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its own, pickle's, zipfile's, struct's: whatever a damaged file runs into
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: not a file of torch weights, or refused: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors")
    try:
        return {str(name): from_torch(str(name), tensor) for name, tensor in tensors.items()}
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantised, of 8 bits
        raise ValueError(f"{path}: expected plain tensors: {error}") from None


def from_torch(name: str, tensor: Any) -> StoredTensor:
    """A torch tensor as stored: bfloat16, which NumPy lacks, as its bits."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return StoredTensor(name, "bfloat16", tuple(tensor.shape), tensor.view(torch.int16).numpy().view("uint16"))
    return StoredTensor.of(name, tensor.numpy())
