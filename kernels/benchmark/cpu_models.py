"""The rows of `cpu` for models: base, random weights, the torch models and the NumPy reference beside transformers.

All read the same checkpoint and batch. Inference ends with the hidden states of the last layer and the pooler. A
training step is forward, backward and AdamW for the classification of texts, with the configuration's dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ernie_m.reference as reference

from .. import ErnieMForSequenceClassification, ErnieMModel

Call = Callable[[], Any]


@dataclass(frozen=True)
class Batch:
    """Rows of these lengths, padded on the right."""

    lengths: tuple[int, ...]

    @property
    def mask(self) -> Any:
        """(B, S) of 0 and 1."""
        return (np.arange(max(self.lengths)) < np.array(self.lengths)[:, None]).astype(np.int64)

    @property
    def inputs(self) -> dict[str, Any]:
        """Random ids without special tokens, and the mask."""
        mask, rng = self.mask, np.random.default_rng(0)
        return {"input_ids": np.where(mask == 1, rng.integers(5, 250_002, mask.shape), 1), "attention_mask": mask}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """`inputs` as tensors."""
        return {name: torch.from_numpy(x) for name, x in self.inputs.items()}


BATCHES = {
    "1 x 16": Batch((16,)),
    "8 x 128": Batch((128,) * 8),
    "4 x 512": Batch((512,) * 4),
    "8 rows of 16 to 128": Batch(tuple(range(16, 129, 16))),
}
TRAINED = ("8 x 128", "8 rows of 16 to 128")
CHECKPOINT = "base"


def prepare(folder: Path) -> None:
    """Write the checkpoint that all competitors read, unless another part has."""
    if (folder / CHECKPOINT).exists():
        return
    config = reference.ErnieMConfig()
    reference.ErnieMModel.from_config(config, seed=0).save_pretrained(folder / CHECKPOINT)


def numpy_reference(batch: Batch, folder: Path) -> Call:
    """The reference in float32."""
    model, inputs, valid = reference.ErnieMModel.from_pretrained(folder / CHECKPOINT), batch.inputs, batch.mask == 1
    return lambda: model(**inputs).last_hidden_state[valid]


def _inference(model: Any, batch: Batch) -> Call:
    inputs, valid = batch.tensors, torch.from_numpy(batch.mask == 1)

    def call() -> Any:
        with torch.inference_mode():
            return model(**inputs).last_hidden_state[valid].float().numpy()

    return call


def ours(batch: Batch, folder: Path) -> Call:
    """The torch model in float32."""
    return _inference(ErnieMModel.from_pretrained(folder / CHECKPOINT), batch)


def ours_compiled(batch: Batch, folder: Path) -> Call:
    """The same as one graph."""
    return _inference(torch.compile(ErnieMModel.from_pretrained(folder / CHECKPOINT), fullgraph=True), batch)


def ours_bfloat16(batch: Batch, folder: Path) -> Call:
    """The torch model in bfloat16, where the processor multiplies matrices in it."""
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        raise RuntimeError("the processor has no bfloat16 instructions")
    return _inference(ErnieMModel.from_pretrained(folder / CHECKPOINT, dtype=torch.bfloat16), batch)


def transformers_model(batch: Batch, folder: Path) -> Call:
    """transformers in float32."""
    import transformers

    return _inference(transformers.ErnieMModel.from_pretrained(folder / CHECKPOINT).eval(), batch)


def _training(model: Any, batch: Batch) -> Call:
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-5)
    inputs, labels = batch.tensors, torch.arange(len(batch.lengths)) % 2

    def step() -> None:
        optimiser.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimiser.step()

    return step


def our_training(batch: Batch, folder: Path) -> Call:
    """The torch model."""
    return _training(ErnieMForSequenceClassification.from_pretrained(folder / CHECKPOINT), batch)


def transformers_training(batch: Batch, folder: Path) -> Call:
    """transformers."""
    import transformers

    return _training(transformers.ErnieMForSequenceClassification.from_pretrained(folder / CHECKPOINT), batch)


MAKERS: dict[str, Callable[[Batch, Path], Call]] = {
    "transformers": transformers_model,
    "torch model": ours,
    "torch model, torch.compile": ours_compiled,
    "torch model, bfloat16": ours_bfloat16,
    "NumPy reference": numpy_reference,
}
TRAINERS: dict[str, Callable[[Batch, Path], Call]] = {
    "transformers": transformers_training,
    "torch model": our_training,
}
ROWS = {
    **{
        f"encoder, {name}": {who: partial(make, batch) for who, make in MAKERS.items()}
        for name, batch in BATCHES.items()
    },
    **{
        f"training step, {name}": {who: partial(make, BATCHES[name]) for who, make in TRAINERS.items()}
        for name in TRAINED
    },
}
