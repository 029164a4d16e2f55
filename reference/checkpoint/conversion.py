"""Making a safetensors directory of any checkpoint that `checkpoint` reads.

Whatever the file holds for its class is kept, to the bit unless another dtype is asked for; nothing is made anew.
"""

from __future__ import annotations

import os
import secrets
import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from .. import heads
from ..array import Array
from ..config import ErnieMConfig
from ..model import ErnieMModel
from ..parameters import shapes
from ..pretrained import PretrainedModel
from . import names
from .reading import Checkpoint, LoadReport, compare_names, note_on_default_mask, open_checkpoint
from .stored_tensor import FLOATS
from .writing import save_checkpoint

TOKENIZER_FILES = (
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def class_of(checkpoint: Checkpoint, config: ErnieMConfig) -> type[PretrainedModel]:
    """Which of the six classes a checkpoint was saved from (see `checkpoint_names.architecture_of`)."""
    name = names.architecture_of(config, checkpoint.tensors)
    found: type[PretrainedModel] = ErnieMModel if name == "ErnieMModel" else getattr(heads, name)
    return found


def own_names(checkpoint: Checkpoint, config: ErnieMConfig) -> tuple[dict[str, str], LoadReport]:
    """For the checkpoint's own class: which stored tensor each path is, and a report of what does not fit.

    A head or a pooler that is missing counts as missing here.
    """
    cls = class_of(checkpoint, config)
    stored, report = compare_names(checkpoint, shapes(config, cls.head_sizes(config), cls.has_pooler))
    missing = (*report.missing, *report.initialised)
    return stored, LoadReport(report.format, missing, report.unexpected, report.mismatched)


def convert(source: str | PathLike[str], destination: str | PathLike[str], dtype: str | None = None) -> None:
    """Write the checkpoint in `source` as a safetensors directory under Hugging Face's names.

    `dtype`: "float16", "bfloat16", "float32" or "float64"; by default what the file has, half precision as float32.
    Weights are kept but for that, those of every head too. Tokenizer files are copied.

    Raises FileExistsError if `destination` exists and is not an empty directory; otherwise as `load_parameters`.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(FLOATS)}, got {dtype!r}")
    target = Path(os.path.abspath(destination))  # "." has no name to put a temporary one beside
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: there is something already; expected a new place, or an empty directory")
    checkpoint = open_checkpoint(source)
    config = ErnieMConfig.from_pretrained(source)
    arrays = complete_arrays(checkpoint, config, None if dtype == "bfloat16" else dtype)
    note_on_default_mask(checkpoint, config)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        architecture = class_of(checkpoint, config).__name__
        save_checkpoint(temporary, config, arrays, architecture, bfloat16=dtype == "bfloat16")
        for name in TOKENIZER_FILES:
            if (checkpoint.directory / name).is_file():
                shutil.copyfile(checkpoint.directory / name, temporary / name)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def complete_arrays(checkpoint: Checkpoint, config: ErnieMConfig, dtype: Any) -> dict[str, Array]:
    """The arrays of a checkpoint's own class. Raises ValueError that lists what is missing or does not fit."""
    stored, report = own_names(checkpoint, config)
    if report:
        kind = class_of(checkpoint, config).__name__
        raise ValueError(f"{checkpoint.directory}: the weights are not those of {kind}:\n{report}")
    return {path: checkpoint.load(path, name, dtype) for path, name in stored.items()}
