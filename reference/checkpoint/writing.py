"""Writing checkpoints that transformers 4.40.2 loads: `config.json` and `model.safetensors`, under its names.

Both are written under temporary names and renamed when they are complete, so that there is never half a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from ..array import Array, round_to_bfloat16, widen_bfloat16
from ..config import ErnieMConfig
from .names import to_huggingface
from .safetensors_file import write_safetensors
from .stored_tensor import first_not_finite

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save_checkpoint(
    directory: str | PathLike[str],
    config: ErnieMConfig,
    arrays: Mapping[str, Array],
    architecture: str,
    overwrite: bool = False,
    bfloat16: bool = False,
) -> None:
    """Write a model's arrays, given by path, and its configuration into a directory, which is made if need be.

    `architecture` is the name of the class. `bfloat16` rounds the weights to that on the way.
    Raises FileExistsError that names a file that is there already, unless `overwrite`; ValueError that names a weight
    that is too large for bfloat16.
    """
    from ernie_m.tokenizer.files import replacing

    folder = Path(directory)
    dtype = "bfloat16" if bfloat16 else np.result_type(*arrays.values()).name
    text = written_config(config, architecture, dtype).to_json()
    targets = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    if not overwrite:
        for path in targets:
            if path.exists():
                raise FileExistsError(f"{path}: there is one already; expected a new place, or overwrite=True")
    tensors = [
        (name, "bfloat16", bfloat16_bits(name, array)) if bfloat16 else (name, array.dtype.name, array)
        for name, array in to_huggingface(arrays).items()
    ]
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(*targets) as (config_file, weights_file):
            config_file.write(text.encode("utf-8"))
            write_safetensors(weights_file, tensors)
    except BaseException:
        if new:
            folder.rmdir()
        raise


def written_config(config: ErnieMConfig, architecture: str, dtype: str) -> ErnieMConfig:
    """The configuration that goes with the weights: if it names a class or a dtype, then those that are written."""
    extra = dict(config.extra)
    if "torch_dtype" in extra:
        extra["torch_dtype"] = dtype
    return config.replace(architectures=(architecture,), extra=extra)


def bfloat16_bits(name: str, array: Array) -> Array:  # -> uint16
    """The weight `name` rounded to bfloat16. Raises ValueError for a number beyond its range."""
    bits = round_to_bfloat16(array)
    where = first_not_finite(widen_bfloat16(bits))
    if where is not None:
        raise ValueError(f"{name}: {array[where]} at {where} is too large for bfloat16")
    return bits
