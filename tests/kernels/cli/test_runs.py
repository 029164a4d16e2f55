"""What the commands that train say before they start."""

from __future__ import annotations

import pytest
import torch

from ernie_m.kernels.cli.runs import stopping
from ernie_m.kernels.runtime import dispatch
from ernie_m.kernels.training import Group


@pytest.mark.parametrize("interpreted", [True, False])
def test_interpreted_kernels_are_announced_once(
    interpreted: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the first process of several alone; where there is a GPU, kernels run on it."""
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    said = ["TRITON_INTERPRET is set: Triton's interpreter runs the kernels, many times slower"]
    for rank in (0, 1):
        with stopping(Group(rank, 2, torch.device("cpu"))):
            pass
        assert capsys.readouterr().err.splitlines() == (said if interpreted and rank == 0 else [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with stopping(Group(0, 1, torch.device("cuda"))):
        pass
    assert capsys.readouterr().err == ""
