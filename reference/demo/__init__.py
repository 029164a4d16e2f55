"""The checkpoint that ships with the package, and the sentences that `ernie-m demo` runs it on.

Its weights are random, drawn from a seed and never trained. `train.py` makes it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ernie_m.tokenizer import ErnieMTokenizer

from ..array import Array


def directory() -> Path:
    """The directory of the demo checkpoint."""
    return Path(str(files(__package__)))


def sentences() -> list[str]:
    """Eight sentences in eight languages."""
    return (directory() / "sentences.txt").read_text(encoding="utf-8").splitlines()


def batch(count: int | None = None) -> tuple[Array, Array]:  # -> (B, S), (B, S)
    """`input_ids` and `attention_mask` of the sentences, or of the first `count`, as one padded batch."""
    found = ErnieMTokenizer.from_pretrained(directory())(sentences()[:count], padding=True, return_tensors="np")
    return found["input_ids"], found["attention_mask"]
