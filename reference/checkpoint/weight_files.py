"""Finding the weight files of a directory, and reading each format.

The first format found is used: safetensors, then torch's, then Paddle's. An index file names the shards.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config.checks import short_repr
from .paddle_pickle import read_pickle
from .safetensors_file import map_file, read_safetensors
from .stored_tensor import StoredTensor
from .wrappers import weights_in

# How torch names what it refused to import, in the errors of all its releases.
REFUSED = re.compile(r"GLOBAL ([\w.]*\w)")
# How often weights may share numbers: two do that are tied, such as word embeddings and the output layer of a decoder.
MOST_SHARING = 4
# torch's message also advises loading the file unsafely; those sentences are dropped.
ADVICE = re.compile("weights_only|safe_globals|trust|allowlist|file an issue|documentation|load failed", re.IGNORECASE)


def find_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint directory.

    Raises FileNotFoundError, with the names looked for, if there are none; NotADirectoryError for a file.
    """
    from ernie_m.tokenizer.files import WEIGHT_FILES

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
    from ernie_m.tokenizer.files import read_json

    content = read_json(index)
    try:
        weight_map = content["weight_map"]
        found = list(dict.fromkeys(weight_map.values()))
        # A name with a directory in it could point anywhere.
        valid = bool(found) and all(isinstance(name, str) and Path(name).name == name for name in found)
    except (ValueError, KeyError, TypeError, AttributeError):
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
    from ernie_m.tokenizer.files import refuse_pointer

    found: dict[str, StoredTensor] = {}
    for path in files:
        refuse_pointer(path)
        if path.suffix == ".safetensors":
            tensors = read_safetensors(path)
        elif path.suffix == ".pdparams":
            arrays = read_pickle(str(path), map_file(path))
            # Paddle stores bfloat16 as uint16, and has no other uint16 weights.
            tensors = {name: StoredTensor.of(name, array, bfloat16=True) for name, array in arrays.items()}
        else:
            tensors = read_torch(path)
        refuse_shared(path, tensors)
        for name in tensors:
            if name in found:
                raise ValueError(f"{path}: {name} is also in another file of this checkpoint")
        found |= tensors
    return found


def refuse_shared(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise ValueError if the file's tensors have many more numbers than the file: loading would make them up.

    A file of a few bytes can describe gigabytes, with the same numbers under many names or, in torch, at many places of
    one tensor.
    """
    described = sum(math.prod(tensor.shape) * tensor.bits.itemsize for tensor in tensors.values())
    size = path.stat().st_size
    if described > MOST_SHARING * size:
        raise ValueError(
            f"{path}: expected at most {MOST_SHARING} times the file's {size:,} bytes, got tensors of {described:,}: "
            "they are expanded, or share their numbers; save contiguous copies"
        )


def refuse_compressed(path: Path) -> None:
    """Raise ValueError for a zip archive, as torch writes, that is damaged or has more content than bytes."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # as older releases of torch write
            return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except Exception as error:  # like torch's, of many kinds
        raise ValueError(f"{path}: {torch_reason(error)}") from None
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path}: expected an uncompressed archive, as torch writes, got {path.stat().st_size:,} bytes for "
            f"{unpacked:,} of content"
        )


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a `.bin` file, read with torch, which executes nothing in the file.

    A training loop's checkpoint may hold them under a key (`wrappers.ENTRIES`). Raises ImportError if torch is not
    installed; ValueError, with the reason, if the file is damaged or refused.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: reading a .bin file needs torch: pip install torch, or convert it to model.safetensors elsewhere"
        ) from None
    refuse_compressed(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise errors of torch, pickle, zipfile or struct
        raise ValueError(f"{path}: {torch_reason(error)}") from None
    try:
        tensors = weights_in(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(tensors, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            found = type(tensor).__name__
            raise ValueError(f"{path}: expected a dictionary of tensors, got {found} under {short_repr(name)}")
    try:
        return {str(name): from_torch(str(name), tensor) for name, tensor in tensors.items()}
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantised or 8-bit
        raise ValueError(f"{path}: expected plain tensors: {error}") from None


def torch_reason(error: Exception) -> str:
    """Why torch did not load a file, without its advice to execute what is in it."""
    refused = REFUSED.search(str(error))
    if refused is not None:
        return (
            f"refused: it references {refused[1]}, which weight files never need; nothing was executed. "
            "Where the file was made, save the weights alone: torch.save(model.state_dict(), path)"
        )
    reason = str(error).rpartition("WeightsUnpickler error:")[2]
    sentences = re.split(r"(?<=\.)\s+|\n+", reason)
    reasons = [sentence.strip() for sentence in sentences if sentence.strip() and not ADVICE.search(sentence)]
    return f"not a torch weight file, or damaged: {reasons[0] if reasons else type(error).__name__}"


def from_torch(name: str, tensor: Any) -> StoredTensor:
    """A torch tensor as a `StoredTensor`; bfloat16, which NumPy lacks, as its bits."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return StoredTensor(name, "bfloat16", tuple(tensor.shape), tensor.view(torch.int16).numpy().view("uint16"))
    return StoredTensor.of(name, tensor.numpy())
