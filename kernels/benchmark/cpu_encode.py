"""The row of `cpu` for texts to vectors: `Encoder`, the object behind `ernie-m encode`, beside transformers.

Base, random weights, float32; the demo's tokenizer; texts of mixed length; the mean over tokens. The loops on
transformers are what people write: 32 texts at a time, padded to the longest, in their order or sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.reference import demo
from ernie_m.tokenizer.new_files import replacing

from . import cpu_models
from .cpu_models import CHECKPOINT

Call = Callable[[], Any]

TOKENIZER_FILES = ("sentencepiece.bpe.model", "vocab.txt")
TEXTS = 100
BATCH = 32


def prepare(folder: Path) -> None:
    """Write the tokenizer beside the model's checkpoint."""
    cpu_models.prepare(folder)
    for name in TOKENIZER_FILES:
        with replacing(folder / CHECKPOINT / name) as (file,):
            file.write((demo.directory() / name).read_bytes())


def texts() -> list[str]:
    """Texts of 3 to 300 words of the demo's sentences: half of them at most 24, as in ordinary prose."""
    rng = np.random.default_rng(0)
    words = [word for sentence in demo.sentences() for word in sentence.split()]
    lengths = np.exp(rng.normal(np.log(24), 0.8, TEXTS)).astype(int).clip(3, 300)
    return [" ".join(rng.choice(words, n)) for n in lengths]


def ours(backend: str, folder: Path) -> Call:
    """`Encoder` with a backend."""
    from ernie_m.reference.tasks import Encoder

    encoder, given = Encoder.from_pretrained(folder / CHECKPOINT, backend=backend), texts()
    return lambda: encoder.vectors(given)


def transformers_loop(by_length: bool, folder: Path) -> Call:
    """A loop over batches on transformers. `by_length`: of texts sorted by their number of characters."""
    import torch
    import transformers

    tokenizer = transformers.ErnieMTokenizer.from_pretrained(folder / CHECKPOINT)
    model, given = transformers.ErnieMModel.from_pretrained(folder / CHECKPOINT).eval(), texts()
    options = {"padding": True, "truncation": True, "max_length": 512, "return_attention_mask": True}

    order = sorted(range(TEXTS), key=lambda i: len(given[i])) if by_length else list(range(TEXTS))

    def call() -> Any:
        found = []
        for start in range(0, TEXTS, BATCH):
            chosen = [given[i] for i in order[start : start + BATCH]]
            batch = tokenizer(chosen, return_tensors="pt", **options)
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        return torch.cat(found)[np.argsort(order)].numpy()

    return call


ROWS = {
    f"encode, {TEXTS} texts": {
        "transformers, a loop by length": partial(transformers_loop, True),
        "transformers, a loop in order": partial(transformers_loop, False),
        "Encoder, torch backend": partial(ours, "torch"),
        "Encoder, NumPy backend": partial(ours, "numpy"),
    }
}
