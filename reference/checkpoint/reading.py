"""Reading checkpoints: Hugging Face's directories and Paddle's, through one table of names.

    config.json  +  model.safetensors, or shards with model.safetensors.index.json       Hugging Face
                    pytorch_model.bin, or shards with pytorch_model.bin.index.json       Hugging Face, older
    config.json (or model_config.json)  +  model_state.pdparams                          Paddle

`open_checkpoint` maps the weights into memory, under the names that they are stored by; `load_parameters` makes a
model's of them, and says at once all that does not fit.

Source: the files that transformers 4.40.2 and paddlenlp 2.8.1 write.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array
from ..config import ErnieMConfig
from ..parameters import initialise, shapes
from . import names
from .stored_tensor import StoredTensor
from .weight_files import find_weights, read_weights

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: its spelling ("huggingface" or "paddle"), its weight files, and what they hold."""

    directory: Path
    format: str
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    @property
    def prefix(self) -> str:
        """What stands before the encoder's names: `ernie_m.` where there is a head."""
        return names.prefix_of(self.tensors)

    def load(self, path: str, name: str, dtype: Any = None) -> Array:
        """The stored tensor `name` as the array that belongs at `path`. Raises ValueError, as `StoredTensor.load`."""
        try:
            return self.tensors[name].load(dtype, names.is_transposed(path, self.format))
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None


@dataclass(frozen=True)
class LoadReport:
    """What of a checkpoint fitted a class. Names and shapes are those of the file.

    `missing`: wanted, not there. `unexpected`: there, not wanted. `mismatched`: (name, shape wanted, shape found).
    `initialised`: made anew, by seed.
    """

    format: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    initialised: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to complain of."""
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"missing: {name}" for name in self.missing]
        lines += [f"unexpected: {name}" for name in self.unexpected]
        lines += [f"wrong shape: {name}: expected {wanted}, got {found}" for name, wanted, found in self.mismatched]
        return "\n".join(lines)


def open_checkpoint(directory: str | PathLike[str]) -> Checkpoint:
    """Find a directory's weights and map them into memory; none is loaded yet.

    Raises FileNotFoundError if it holds no weights, with what was looked for; ValueError that names a damaged file.
    """
    folder = Path(directory)
    files = find_weights(folder)
    tensors = read_weights(files)
    format = names.PADDLE if files[0].suffix == ".pdparams" else names.format_of(tensors)
    return Checkpoint(folder, format, files, tensors)


def compare_names(
    checkpoint: Checkpoint, wanted: Mapping[str, Shape]
) -> tuple[dict[str, str], LoadReport]:  # -> path: name in the file
    """Which stored tensor each wanted path is, and a report of what does not fit.

    A whole head or pooler may be missing, and those of another class may be there: neither is an error.
    """
    format, prefix = checkpoint.format, checkpoint.prefix
    stored: dict[str, str] = {}
    missing: list[str] = []
    mismatched: list[tuple[str, Shape, Shape]] = []
    new: list[str] = []
    expected = {path: names.file_name(path, format, prefix) for path in wanted}
    # Half a head is damage, not a headless checkpoint.
    begun = {path.partition(".")[0] for path, name in expected.items() if name in checkpoint.tensors}
    for path, name in expected.items():
        if name not in checkpoint.tensors:
            part = path.partition(".")[0]
            (new if part in ("head", "pooler") and part not in begun else missing).append(name)
            continue
        shape = wanted[path][::-1] if names.is_transposed(path, format) else wanted[path]
        found = checkpoint.tensors[name].shape
        if found == shape:
            stored[path] = name
        else:
            mismatched.append((name, shape, found))
    known = set(expected.values())
    others = (name for name in checkpoint.tensors if name not in known and not names.unused(name, format))
    report = LoadReport(format, tuple(missing), tuple(others), tuple(mismatched), tuple(new))
    return stored, report


def load_parameters(
    directory: str | PathLike[str],
    config: ErnieMConfig,
    head: Mapping[str, int],
    pooler: bool,
    dtype: Any = None,
    strict: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Array], LoadReport]:
    """The arrays of a model with that configuration, head and pooler, by path, and a report.

    dtype: by default the file's, half precision as float32. A weight is a read-only view of the file where its bytes
    need no change. A head or a pooler that the file lacks is made by `seed`, which is said on stderr.

    Raises ValueError that lists every missing, unexpected and wrongly shaped weight, unless `strict` is False: then
    what is missing or of a wrong shape is made by `seed` too. Raises ValueError that names a weight with a nan in it.
    """
    checkpoint = open_checkpoint(directory)
    wanted = shapes(config, head, pooler)
    stored, report = compare_names(checkpoint, wanted)
    if report and strict:
        raise ValueError(f"{directory}: the weights are not those of this model:\n{report}")
    arrays = {path: checkpoint.load(path, name, dtype) for path, name in stored.items()}
    made = {path: shape for path, shape in wanted.items() if path not in arrays}
    if made:
        kind = arrays["word_embeddings"].dtype if "word_embeddings" in arrays else np.dtype(dtype or np.float32)
        arrays |= initialise(made, config, seed, kind)
        described = ", ".join(names.file_name(path, checkpoint.format, checkpoint.prefix) for path in made)
        print(f"{directory}: not in the checkpoint, made by seed {seed}: {described}", file=sys.stderr)
    note_on_default_mask(checkpoint, config)
    kinds = {array.dtype for array in arrays.values()}
    if len(kinds) > 1:
        largest = np.result_type(*kinds)
        arrays = {path: array.astype(largest, copy=False) for path, array in arrays.items()}
    return {path: arrays[path] for path in wanted}, report


def note_on_default_mask(checkpoint: Checkpoint, config: ErnieMConfig) -> None:
    """Say on stderr, of a Paddle extraction checkpoint, that there is another default mask, and why."""
    if checkpoint.format != names.PADDLE or config.default_mask == "cls_token":
        return
    if names.architecture_of(config, checkpoint.tensors) == "ErnieMForInformationExtraction":
        print(
            f"{checkpoint.directory}: Paddle's extraction checkpoints (UIE-M) were trained with a mask on [CLS], in "
            "place of one on padding, wherever a call brings none. It is used only if you choose it: "
            'from_pretrained(directory, default_mask="cls_token"), or "default_mask": "cls_token" in its config file.',
            file=sys.stderr,
        )
