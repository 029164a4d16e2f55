"""The checkpoint that ships with the package, and the sentences that `ernie-m demo` runs it on.

It is small, but trained: README.md is its model card, and `make.py` makes this folder from a run of `make pretrain`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ernie_m.tokenizer import ErnieMTokenizer

from ..array import Array
from ..tasks.recorded import read_recorded

COMMENT = "#"


def directory() -> Path:
    """The directory of the checkpoint."""
    return Path(str(files(__package__)))


def sentences() -> list[str]:
    """Eight sentences in eight languages that the model was not trained on; i and i + 4 are translations."""
    return [text for _, text in _rows()]


def languages() -> list[str]:
    """The language of each sentence."""
    return [language for language, _ in _rows()]


def batch(count: int | None = None) -> tuple[Array, Array]:  # -> (B, S), (B, S)
    """`input_ids` and `attention_mask` of the sentences, or of the first `count`, as one padded batch."""
    found = ErnieMTokenizer.from_pretrained(directory())(sentences()[:count], padding=True, return_tensors="np")
    return found["input_ids"], found["attention_mask"]


def retrieval() -> tuple[int, dict[str, Array]]:
    """The layer whose hidden states find translations best, 0 for the embeddings, and each language's mean vector."""
    found = read_recorded(directory())
    assert found is not None
    return found.layer, found.language_means


def _rows() -> list[tuple[str, str]]:
    lines = (directory() / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith(COMMENT)]
    return [(language, text) for language, text in rows]
