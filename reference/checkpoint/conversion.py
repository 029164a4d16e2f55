"""Converting any checkpoint that `checkpoint` reads to a safetensors directory.

All weights of the checkpoint's class keep their exact values unless another dtype is requested; none is newly
initialised. What a Paddle checkpoint leaves unsaid is written down: the default mask of UIE-M in `config.json`, and how
text is cut in `tokenizer_config.json`.
"""

from __future__ import annotations

import os
from os import PathLike
from typing import Any

from .. import heads
from ..array import Array
from ..config import ErnieMConfig
from ..model import ErnieMModel
from ..pretrained import PretrainedModel
from . import names
from .reading import Checkpoint, LoadReport, WeightsError, compare_names, open_checkpoint, read_config
from .stored_tensor import FLOATS
from .writing import TOKENIZER_CONFIG, paddle_tokenizer, save_checkpoint

TOKENIZER_FILES = (
    "vocab.txt",
    "sentencepiece.bpe.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
# What `tasks.recorded` reads: the layer for retrieval and the languages' mean vectors, which conversion leaves as is.
RETRIEVAL = "retrieval.json"


def class_of(checkpoint: Checkpoint, config: ErnieMConfig) -> type[PretrainedModel]:
    """Which of the classes a checkpoint was saved from (see `names.architecture_of`)."""
    name = names.architecture_of(config, checkpoint.tensors)
    found: type[PretrainedModel] = ErnieMModel if name == "ErnieMModel" else getattr(heads, name)
    return found


def own_names(checkpoint: Checkpoint, config: ErnieMConfig) -> tuple[dict[str, str], LoadReport]:
    """For the checkpoint's own class, the stored name of each path, and a report of mismatches.

    Unlike in `compare_names`, an absent head or pooler counts as missing.
    """
    cls = class_of(checkpoint, config)
    stored, report = compare_names(checkpoint, cls.shapes(config))
    missing = (*report.missing, *report.initialised)
    return stored, LoadReport(report.format, missing, report.unexpected, report.mismatched)


def convert(source: str | PathLike[str], destination: str | PathLike[str], dtype: str | None = None) -> None:
    """Write the checkpoint in `source` as a safetensors directory under Hugging Face's names.

    `dtype`: "float16", "bfloat16", "float32" or "float64"; by default that of the file, with half precision widened to
    float32. All weights of the checkpoint's own class are kept, without the prefixes that `wrappers` knows. Tokenizer
    files are copied; those of a Paddle checkpoint then also say that text is cut as Paddle does, unless they say how.
    `retrieval.json` is copied too.

    Writes into `destination` if it is an empty directory. If anything fails, nothing is left there, nor any directory
    made. Raises FileExistsError if it exists and is anything else; other errors as in `load_parameters`.
    """
    from ernie_m.tokenizer.files import is_paddle, path_of, refuse_pointer

    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype: expected one of {', '.join(FLOATS)}, got {dtype!r}")
    target = path_of(destination, "destination")
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: the destination exists and is not an empty directory")
    checkpoint = open_checkpoint(source)
    config = read_config(source)
    tokenizer_files = [path for name in TOKENIZER_FILES if (path := checkpoint.directory / name).is_file()]
    recorded = [path] if (path := checkpoint.directory / RETRIEVAL).is_file() else []
    for path in (*tokenizer_files, *recorded):
        refuse_pointer(path)
    written = {}
    if tokenizer_files and is_paddle(source):
        written = paddle_tokenizer(checkpoint.directory)
        tokenizer_files = [path for path in tokenizer_files if path.name not in written]
    arrays = complete_arrays(checkpoint, config, None if dtype == "bfloat16" else dtype)
    architecture = class_of(checkpoint, config).__name__
    save_checkpoint(
        *(target, config, arrays, architecture),
        bfloat16=dtype == "bfloat16",
        copied=[*tokenizer_files, *recorded],
        written=written,
    )


def complete_arrays(checkpoint: Checkpoint, config: ErnieMConfig, dtype: Any) -> dict[str, Array]:
    """The arrays of a checkpoint's own class. Raises WeightsError."""
    stored, report = own_names(checkpoint, config)
    if report:
        architecture = class_of(checkpoint, config).__name__
        raise WeightsError(f"{checkpoint.directory}: the weights do not match {architecture}", report)
    return {path: checkpoint.load(path, name, dtype) for path, name in stored.items()}
