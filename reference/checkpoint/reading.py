"""Reading Hugging Face's and Paddle's checkpoint directories, through one table of names.

    config.json  +  model.safetensors, or shards with model.safetensors.index.json       Hugging Face
                    pytorch_model.bin, or shards with pytorch_model.bin.index.json       Hugging Face, older
    config.json (or model_config.json)  +  model_state.pdparams                          Paddle

`open_checkpoint` maps the weights into memory under their stored names, without the prefixes that `wrappers` knows;
`load_parameters` matches them to a model's parameters, and reports all mismatches at once.

Source: the files that transformers 4.40.2 and paddlenlp 2.8.1 write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array, true_or_false
from ..config import ErnieMConfig, files
from ..parameters import initialise
from . import names
from .stored_tensor import StoredTensor
from .weight_files import find_weights, read_weights
from .wrappers import plain_names

Shape = tuple[int, ...]
# The number of a layer in a name, and when a report becomes a summary.
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
MOST_OF_A_PATTERN = 3
MOST_LINES = 100


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory: its format ("huggingface" or "paddle"), its weight files, and their tensors.

    The keys of `tensors` are the stored names without prefixes such as `module.`; each tensor's `name` is as stored.
    """

    directory: Path
    format: str
    files: tuple[Path, ...]
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    def is_transposed(self, path: str) -> bool:
        """Whether the files store the weight at this path as (inputs, outputs)."""
        return names.is_transposed(path, self._orientation)

    @cached_property
    def _orientation(self) -> str:
        return names.orientation_of({name: tensor.shape for name, tensor in self.tensors.items()}, self.format)

    @property
    def prefix(self) -> str:
        """The prefix of the encoder's names: `ernie_m.` if there is a head, else empty."""
        return names.prefix_of(self.tensors)

    def load(self, path: str, name: str, dtype: Any = None) -> Array:
        """The stored tensor `name` as the array at `path`. Raises ValueError as `StoredTensor.load` does."""
        try:
            return self.tensors[name].load(dtype, self.is_transposed(path))
        except ValueError as error:
            raise ValueError(f"{self.directory}: {error}") from None


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint matches a class. Shapes and names are the file's, names without wrapper prefixes.

    `missing`: expected, but not stored. `unexpected`: stored, but not expected. `mismatched`: (name, expected shape,
    stored shape). `initialised`: an absent head or pooler, newly initialised from the seed.
    """

    format: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    initialised: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """True if anything is missing, unexpected or mismatched."""
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """A line for each weight, or for all that differ only in their layer if there are more than a few."""
        return "\n".join(self.lines())

    def lines(self, every: bool = False) -> list[str]:
        """The lines of `str`; with `every`, one for each weight."""
        shapes = [(name, f": expected {wanted}, got {found}") for name, wanted, found in self.mismatched]
        kinds = {
            "missing": [(name, "") for name in self.missing],
            "unexpected": [(name, "") for name in self.unexpected],
            "wrong shape": shapes,
        }
        return [f"{kind}: {line}" for kind, found in kinds.items() for line in summary(found, every)]


class WeightsError(ValueError):
    """The weights of a checkpoint do not match the model; `report` lists each of them."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(f"{message}:\n{report}")
        self.report = report


def summary(names: Iterable[tuple[str, str]], every: bool = False) -> list[str]:
    """One line for each name and what is said about it, or for all of a pattern such as `layers.*.norm1.bias`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, end in names:
        groups.setdefault((NUMBER.sub("*", name), end), []).append(name)
    lines: list[str] = []
    for (pattern, end), found in groups.items():
        if every or len(found) <= MOST_OF_A_PATTERN:
            lines += [name + end for name in found]
        else:
            lines.append(f"{pattern}{end} ({len(found):,}, such as {found[0]})")
    if not every and len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"and {len(lines) - MOST_LINES:,} lines like these"]
    return lines


def open_checkpoint(directory: str | PathLike[str]) -> Checkpoint:
    """Find a directory's weights and map them into memory, without loading them.

    Raises FileNotFoundError, with the names looked for, if there are none. Raises ValueError, naming the file, if one
    is damaged; naming the directory, if only some weights have a prefix.
    """
    folder = Path(directory)
    files = find_weights(folder)
    stored = read_weights(files)
    try:
        tensors = {plain: stored[name] for plain, name in plain_names(stored).items()}
    except ValueError as error:
        raise ValueError(f"{folder}: names of weights: {error}") from None
    format = names.PADDLE if files[0].suffix == ".pdparams" else names.format_of(tensors)
    return Checkpoint(folder, format, files, tensors)


def compare_names(
    checkpoint: Checkpoint, wanted: Mapping[str, Shape]
) -> tuple[dict[str, str], LoadReport]:  # -> path: name in the file
    """The stored name of each wanted path, and a report of mismatches.

    A whole head or pooler may be absent, and those of another class may be present; neither is an error.
    """
    format, prefix = checkpoint.format, checkpoint.prefix
    stored: dict[str, str] = {}
    missing: list[str] = []
    mismatched: list[tuple[str, Shape, Shape]] = []
    new: list[str] = []
    expected = {path: names.file_name(path, format, prefix) for path in wanted}
    # A partial head means a damaged file, not a checkpoint without a head.
    present = {path.partition(".")[0] for path, name in expected.items() if name in checkpoint.tensors}
    for path, name in expected.items():
        if name not in checkpoint.tensors:
            part = path.partition(".")[0]
            (new if part in names.OPTIONAL and part not in present else missing).append(name)
            continue
        shape = wanted[path][::-1] if checkpoint.is_transposed(path) else wanted[path]
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
    wanted: Mapping[str, Shape],
    dtype: Any = None,
    strict: bool = True,
    seed: int = 0,
    ignore_mismatched_sizes: bool = False,
) -> tuple[dict[str, Array], LoadReport]:
    """The arrays, by path, of a model with this configuration and these paths and shapes, and a report.

    dtype: by default that of the file, with half precision widened to float32. A weight that needs no conversion is a
    read-only view of the file. A head or pooler that the file lacks is initialised from `seed`, with a note on stderr.

    Raises WeightsError for missing, unexpected and wrongly shaped weights, unless `strict` is False: then
    missing and wrongly shaped weights are initialised from `seed` too. `ignore_mismatched_sizes` does this for wrongly
    shaped weights only. The note and the report list them. Raises ValueError, naming the weight, for nan or
    infinity.
    """
    true_or_false(strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes)
    checkpoint = open_checkpoint(directory)
    stored, report = compare_names(checkpoint, wanted)
    errors = replace(report, mismatched=()) if ignore_mismatched_sizes else report
    if errors and strict:
        raise WeightsError(f"{directory}: the weights do not match this model", errors)
    arrays = {path: checkpoint.load(path, name, dtype) for path, name in stored.items()}
    new = {path: shape for path, shape in wanted.items() if path not in arrays}
    if new:
        new_dtype = arrays["word_embeddings"].dtype if "word_embeddings" in arrays else np.dtype(dtype or np.float32)
        arrays |= initialise(new, config, seed, new_dtype)
        wrong = {name: f" (expected {shape}, stored {found})" for name, shape, found in report.mismatched}
        listed = [names.file_name(path, checkpoint.format, checkpoint.prefix) for path in new]
        text = ", ".join(summary((name, wrong.get(name, "")) for name in listed))
        print(f"{directory}: not loaded, but initialised from seed {seed}: {text}", file=sys.stderr)
    largest = np.result_type(*{array.dtype for array in arrays.values()})
    return {path: arrays[path].astype(largest, copy=False) for path in wanted}, report


def read_config(directory: str | PathLike[str], **changes: Any) -> ErnieMConfig:
    """The configuration of a checkpoint directory, with some fields changed.

    Paddle's extraction checkpoints (UIE-M) were trained with a default mask on [CLS] instead of padding, which their
    configuration does not say. So for these `default_mask` is "cls_token", with a note on stderr, unless the file or
    `changes` name one. They are the checkpoints in Paddle's format whose class is UIEM, or whose weights include its
    `linear_start` and `linear_end`, whatever the configuration says.

    Raises errors as `ErnieMConfig.from_pretrained` and `open_checkpoint` do.
    """
    from ernie_m.tokenizer.files import read_json

    config = ErnieMConfig.from_pretrained(directory).replace(**changes)
    if "default_mask" in {*changes, *read_json(files.find(directory))}:
        return config
    checkpoint = open_checkpoint(directory)
    if checkpoint.format != names.PADDLE or not is_extraction(config, checkpoint.tensors):
        return config
    print(
        f'{directory}: a Paddle extraction checkpoint (UIE-M), trained with a default mask on [CLS]: default_mask="'
        'cls_token". Call the model without attention_mask; default_mask="pad_token" would mask padding instead.',
        file=sys.stderr,
    )
    return config.replace(default_mask="cls_token")


def is_extraction(config: ErnieMConfig, stored: Collection[str]) -> bool:
    """Whether a checkpoint was saved from the extraction class, by its configuration or by the names of its weights."""
    heads = {f"{end}.weight" for end in ("linear_start", "linear_end")}
    return heads <= set(stored) or names.architecture_of(config, stored) == "ErnieMForInformationExtraction"
