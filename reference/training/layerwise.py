"""Layer-wise decay of the learning rate: the further a layer is from the head, the smaller its steps.

    head, pooler         η
    layer i of L         η d^(L − i)
    embeddings           η d^(L + 1)

Fine-tuning should change the lower layers, which hold what pre-training taught about language, less than the upper
ones.

Source: PaddleNLP's `AdamWDL` (`layerwise_lr_decay`), with which ERNIE-M was fine-tuned, with d = 0.8; the idea is from
ELECTRA (Clark et al., 2020), appendix.
"""

from __future__ import annotations

from collections.abc import Iterable


def layer_wise_rates(paths: Iterable[str], rate: float, decay: float, layers: int) -> dict[str, float]:
    """The learning rate of each parameter of a model of `layers` layers. Raises ValueError unless 0 < decay <= 1."""
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay: expected a number above 0 and at most 1, got {decay}")

    def depth(path: str) -> int:
        first, *rest = path.split(".")
        if first == "layers":
            return layers - int(rest[0])
        return layers + 1 if first in ("word_embeddings", "position_embeddings", "layer_norm") else 0

    return {path: rate * decay ** depth(path) for path in paths}
