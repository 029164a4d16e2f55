"""Writing checkpoints that transformers 4.40.2 loads: `config.json` and `model.safetensors`, under its names.

Both are written under temporary names and renamed when they are complete, so that there is never half a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from .checkpoint_names import to_huggingface
from .config import ErnieMConfig
from .files import replacing
from .parameters import Array
from .safetensors_file import write_safetensors
from .stored_tensor import round_to_bfloat16

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
    Raises FileExistsError that names a file that is there already, unless `overwrite`.
    """
    folder = Path(directory)
    text = config.replace(architectures=(architecture,)).to_json()
    targets = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
    if not overwrite:
        for path in targets:
            if path.exists():
                raise FileExistsError(f"{path}: there is one already; expected a new place, or overwrite=True")
    tensors = [
        (name, "bfloat16", round_to_bfloat16(array)) if bfloat16 else (name, array.dtype.name, array)
        for name, array in to_huggingface(arrays).items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(*targets) as (config_file, weights_file):
        config_file.write(text.encode("utf-8"))
        write_safetensors(weights_file, tensors)
