"""Training is tested in plain torch, as on a CPU: in the interpreter the kernels take minutes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch_models import way


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No kernel runs, and gradients are computed."""
    monkeypatch.setattr("ernie_m.kernels.linear_cross_entropy_backward.runs_triton", lambda x: False)
    with way("without kernels"), torch.enable_grad():
        yield
