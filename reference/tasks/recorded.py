"""What a checkpoint records for retrieval, in `retrieval.json` in its folder, and what follows for its vectors.

    {"layer": 3, "language_means": {"de": [0.116, ...], ...}}

The layer is the one whose hidden states, averaged over tokens, find translations best; 0 is the embeddings. A
language's mean vector is that of its texts' vectors there. `pretrain` in `ernie_m.kernels` writes the file.

Source: for centring, `training.retrieval`.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from ernie_m.tokenizer.files import read_json

from ..array import Array
from ..checkpoint.conversion import RETRIEVAL
from ..config import ErnieMConfig
from .arguments import several
from .backends import FIRST_LAST, MEAN, POOLER

# Poolings that fix which layers they read.
FIXED = {POOLER: "reads the last layer", FIRST_LAST: "reads the first and the last layer"}

ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, eq=False)
class Recorded:
    """A layer, and each language's mean vector (E,) of what that layer gives."""

    layer: int
    language_means: dict[str, Array]


def read_recorded(directory: str | PathLike[str]) -> Recorded | None:
    """The file's content; None if there is no such file. Raises ValueError, naming it, for content of another form."""
    path = Path(directory) / RETRIEVAL
    if not path.is_file():
        return None
    expected = 'expected {"layer": a whole number, "language_means": {language: a list of numbers}}'
    found = read_json(path)
    try:
        means = {name: np.array(mean, np.float64) for name, mean in found["language_means"].items()}
        layer = found["layer"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {expected}: {error!r}") from None
    if type(layer) is not int or any(mean.ndim != 1 or not np.isfinite(mean).all() for mean in means.values()):
        raise ValueError(f"{path}: {expected}, got layer {layer!r} and means for {', '.join(means) or 'no language'}")
    return Recorded(layer, means)


def choose_layer(config: ErnieMConfig, pooling: str, layer: int | None, recorded: Recorded | None) -> int:
    """The last layer that a pooling reads. Raises ValueError if there is no such layer, or no choice."""
    last, E = config.num_hidden_layers, config.hidden_size
    for name, mean in ({} if recorded is None else recorded.language_means).items():
        if mean.shape != (E,):
            raise ValueError(f"recorded: expected mean vectors of {E} numbers, got {mean.shape} for {name}")
    if pooling in FIXED and layer is not None:
        raise ValueError(f"layer: expected none with pooling {pooling}, which {FIXED[pooling]}, got {layer}")
    if pooling == FIRST_LAST and last == 0:
        raise ValueError("pooling: expected a model with layers for first-last, got one without")
    if layer is None:
        layer = recorded.layer if recorded is not None and pooling == MEAN else last
    if not isinstance(layer, (int, np.integer)) or isinstance(layer, bool) or not 0 <= layer <= last:
        raise ValueError(f"layer: expected 0, the embeddings, to {last}, the last, got {layer!r}")
    return int(layer)


class Centre:
    """Subtracts from texts' vectors the mean of their language.

    Raises ValueError unless `pooling` and `layer` are those the means were computed with.
    """

    def __init__(self, recorded: Recorded | None, pooling: str, layer: int) -> None:
        if recorded is not None and (pooling, layer) != (MEAN, recorded.layer):
            raise ValueError(
                f"center: expected pooling mean at layer {recorded.layer}, for which the means were recorded, "
                f"got pooling {pooling} at layer {layer}"
            )
        self.language_means = {} if recorded is None else recorded.language_means
        self.warned: set[str] = set()

    def means(self, count: int, language: str | Sequence[str] | None, E: int) -> Array:  # -> (count, E)
        """The mean of the language of each text; 0 for one that has none, with a warning the first time."""
        if language is None:
            raise ValueError("language: expected one, or one for each text, as center=True needs it, got None")
        languages = [language] * count if isinstance(language, str) else several("language", language)
        if len(languages) != count:
            raise ValueError(f"language: expected one, or one for each of {count} texts, got {len(languages)}")
        with ONE_AT_A_TIME:
            unknown = sorted(set(languages) - set(self.language_means) - self.warned)
            self.warned.update(unknown)
        if unknown:
            known = ", ".join(sorted(self.language_means)) or "no language"
            warnings.warn(
                f"center: the checkpoint has no mean vector of {', '.join(unknown)} (it has those of {known}), so "
                "their texts are not centred, and stay nearer to others of the same language than to translations",
                stacklevel=4,
            )
        return np.array([self.language_means.get(name, np.zeros(E)) for name in languages]).reshape(count, E)
