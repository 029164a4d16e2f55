"""Writing checkpoints that transformers 4.40.2 loads: `config.json` and `model.safetensors`, with its names.

Files get their names only when all are complete, so a checkpoint is never half-written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..array import Array, round_to_bfloat16, true_or_false, widen_bfloat16
from ..config import ErnieMConfig
from .names import to_huggingface
from .safetensors_file import write_safetensors
from .stored_tensor import first_not_finite

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"


def save_checkpoint(
    directory: str | PathLike[str],
    config: ErnieMConfig,
    arrays: Mapping[str, Array],
    architecture: str,
    overwrite: bool = False,
    bfloat16: bool = False,
    copied: Sequence[Path] = (),
    written: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a model's arrays, given by path, and its configuration to a directory, which is created if needed.

    `architecture` is the name of the class. `bfloat16` rounds the weights to bfloat16. `copied`: files to copy into the
    directory, such as the tokenizer's; `written`: others, by name. If there is a tokenizer beside weights of Paddle's,
    which from now on are not the directory's, its files also say how text is cut. If anything fails, the directory is
    as before.

    Raises FileExistsError if a file exists, unless `overwrite`, or cannot be replaced; ValueError, naming the weight,
    for a number too large for bfloat16.
    """
    from ernie_m.tokenizer.files import is_paddle, path_of
    from ernie_m.tokenizer.new_files import directory as created
    from ernie_m.tokenizer.new_files import replacing

    true_or_false(overwrite=overwrite)
    folder = path_of(directory)
    marked = paddle_tokenizer(folder) if is_paddle(folder) and (folder / "vocab.txt").is_file() else {}
    written = {**marked, **written}
    dtype = "bfloat16" if bfloat16 else np.result_type(*arrays.values()).name
    text = written_config(config, architecture, dtype).to_json()
    targets = [folder / name for name in (CONFIG_FILE, WEIGHTS_FILE, *written, *(path.name for path in copied))]
    if not overwrite:
        for path in targets:
            if path.exists():
                change = 'add how text is cut, "lone_marker"' if path.name in marked else "replace it"
                raise FileExistsError(f"{path}: the file exists; pass overwrite=True to {change}")
    tensors = [
        (name, "bfloat16", bfloat16_bits(name, array)) if bfloat16 else (name, array.dtype.name, array)
        for name, array in to_huggingface(arrays).items()
    ]
    with created(folder), replacing(*targets, overwrite=overwrite) as (config_file, weights_file, *others):
        config_file.write(text.encode("utf-8"))
        write_safetensors(weights_file, tensors)
        for data, file in zip(written.values(), others[: len(written)], strict=True):
            file.write(data)
        for path, file in zip(copied, others[len(written) :], strict=True):
            with open(path, "rb") as original:
                shutil.copyfileobj(original, file)


def paddle_tokenizer(directory: Path) -> dict[str, bytes]:
    """The tokenizer_config.json, by its name, of a Paddle directory, which says how text is cut; {} if it does so."""
    from ernie_m.tokenizer.files import read_json

    path = directory / TOKENIZER_CONFIG
    options = read_json(path) if path.is_file() else {}
    if options.get("lone_marker") is not None:
        return {}
    text = json.dumps({**options, "lone_marker": "paddle"}, indent=2, sort_keys=True, ensure_ascii=False)
    return {TOKENIZER_CONFIG: (text + "\n").encode()}


def written_config(config: ErnieMConfig, architecture: str, dtype: str) -> ErnieMConfig:
    """The configuration to write: with this class and, if it has a `torch_dtype`, this dtype."""
    extra = dict(config.extra)
    if "torch_dtype" in extra:
        extra["torch_dtype"] = dtype
    return config.replace(architectures=(architecture,), extra=extra)


def bfloat16_bits(name: str, array: Array) -> Array:  # -> uint16
    """The weight `name` rounded to bfloat16. Raises ValueError for a number out of range."""
    bits = round_to_bfloat16(array)
    where = first_not_finite(widen_bfloat16(bits))
    if where is not None:
        raise ValueError(f"{name}: {array[where]} at {where} is too large for bfloat16")
    return bits
