"""What `verify` and `bench` set up before they compare anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ernie_m.kernels.checking import verify
from ernie_m.kernels.runtime.dispatch import INTERPRETED


@pytest.fixture
def matmul() -> Iterator[object]:
    """torch's settings of matrix products on a GPU, restored afterwards."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    yield settings
    settings.allow_tf32 = before


def test_verify_turns_tf32_off_on_a_gpu(
    matmul: torch.backends.cuda.cuBLASModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tf32, which errs by 2⁻¹¹, a model in float32 would be judged by a computation of half its digits."""
    monkeypatch.setattr(verify, "INTERPRETED", False)
    matmul.allow_tf32 = True
    verify.prepare()
    assert not matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(not INTERPRETED, reason="kernels run on a GPU here")
def test_verify_tests_the_interpreter_first(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(verify, "self_test", lambda: called.append(True))
    verify.prepare()
    assert called
