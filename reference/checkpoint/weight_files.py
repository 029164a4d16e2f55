"""Finding the weight files of a directory, and reading each format.

The first format found is used: safetensors, then torch's, then Paddle's. An index file names the shards.
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

    Raises FileNotFoundError, with the names looked for, if there are none; NotADirectoryError for a file.
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
    """The files that an index names, each once. Raises ValueError or FileNotFoundError, naming the index."""
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        found = list(dict.fromkeys(weight_map.values()))
        # A name with a directory in it could point anywhere.
        valid = bool(found) and all(isinstance(name, str) and Path(name).name == name for name in found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f'{index}: expected {{"weight_map": {{weight: name of a file in the same directory}}}}')
    for name in found:
        # Not `Path.is_file`, which raises for a name that is too long.
        if not os.path.isfile(index.parent / name):
            raise FileNotFoundError(f"{index}: names the file {name!r}, which does not exist")
    return tuple(index.parent / name for name in found)


def read_weights(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """All tensors of these files, by name. Raises ValueError if a file is damaged or two hold the same tensor."""
    found: dict[str, StoredTensor] = {}
    for path in files:
        if path.suffix == ".safetensors":
            tensors = read_safetensors(path)
        elif path.suffix == ".pdparams":
            arrays = read_pickle(str(path), map_file(path))
            # Paddle stores bfloat16 as uint16, and has no other uint16 weights.
            tensors = {name: StoredTensor.of(name, array, bfloat16=True) for name, array in arrays.items()}
        else:
            tensors = read_torch(path)
        for name in tensors:
            if name in found:
                raise ValueError(f"{path}: {name} is also in another file of this checkpoint")
        found |= tensors
    return found


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a `.bin` file, read with torch, which executes nothing in the file.

    Raises ImportError if torch is not installed; ValueError if the file is damaged or refused.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: reading a .bin file needs torch: pip install torch, or convert it to model.safetensors elsewhere"
        ) from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise errors of torch, pickle, zipfile or struct
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path}: not a torch weight file, or refused: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors")
    try:
        return {str(name): from_torch(str(name), tensor) for name, tensor in tensors.items()}
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantised or 8-bit
        raise ValueError(f"{path}: expected plain tensors: {error}") from None


def from_torch(name: str, tensor: Any) -> StoredTensor:
    """A torch tensor as a `StoredTensor`; bfloat16, which NumPy lacks, as its bits."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return StoredTensor(name, "bfloat16", tuple(tensor.shape), tensor.view(torch.int16).numpy().view("uint16"))
    return StoredTensor.of(name, tensor.numpy())
