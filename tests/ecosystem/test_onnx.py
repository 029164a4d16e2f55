"""Models as ONNX graphs, in both of torch's exporters: other batches give what the model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ecosystem_helpers import small
from torch.export import Dim
from torch.nn import Module

from ernie_m.kernels import ErnieMForQuestionAnswering, ErnieMForSequenceClassification, ErnieMModel

# `make test-latest` has onnxscript and onnxruntime.
pytestmark = [pytest.mark.all, pytest.mark.filterwarnings("ignore")]
NAMES = ["input_ids", "attention_mask"]


class Wrapped(Module):
    """Takes its arguments by position and returns a tuple, as the older exporter asks."""

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return tuple(self.model(input_ids, attention_mask).values())


def given(B: int, S: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask; the last row is padded."""
    ids, mask = torch.randint(2, 50, (B, S)), torch.ones(B, S, dtype=torch.int64)
    mask[-1, S // 2 :] = 0
    return ids, mask


@pytest.mark.parametrize("cls", [ErnieMModel, ErnieMForSequenceClassification, ErnieMForQuestionAnswering])
@pytest.mark.parametrize("dynamo", [True, False])
def test_a_graph_computes_what_the_model_does(cls: Any, dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, file = small(cls, np.float32).eval(), tmp_path / "model.onnx"
    if dynamo:
        free = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in NAMES}
        torch.onnx.export(model, given(2, 6), file, input_names=NAMES, dynamic_shapes=free, verbose=False)
    else:
        axes = {name: {0: "B", 1: "S"} for name in NAMES}
        torch.onnx.export(Wrapped(model), given(2, 6), file, input_names=NAMES, dynamic_axes=axes, dynamo=False)
    session = runtime.InferenceSession(file)
    for B, S in ((2, 6), (3, 9), (1, 2)):
        ids, mask = given(B, S)
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            wanted = Wrapped(model)(ids, mask)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
