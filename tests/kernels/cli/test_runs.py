"""What the commands that train say before they start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ernie_m.kernels.cli.runs import prepare
from ernie_m.kernels.runtime import dispatch
from ernie_m.kernels.training import Group


@pytest.mark.parametrize("interpreted", [True, False])
def test_interpreted_kernels_are_announced_once(
    interpreted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the first process of several alone; where there is a GPU, kernels run on it."""
    monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
    said = ["TRITON_INTERPRET is set: Triton's interpreter runs the kernels, many times slower"]
    for rank in (0, 1):
        monkeypatch.setattr(Group, "wait", lambda group: None)
        assert not prepare(tmp_path / f"{rank}", False, Group(rank, 2, torch.device("cpu")))
        assert capsys.readouterr().err.splitlines() == (said if interpreted and rank == 0 else [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not prepare(tmp_path / "gpu", False, Group(0, 1, torch.device("cuda")))
    assert capsys.readouterr().err == ""
