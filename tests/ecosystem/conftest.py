"""What other libraries do to a torch module: nothing may be lost, nothing silently ignored.

The operations run in plain torch here: how weights reach them does not depend on that, and the interpreter is slow.
In continuous integration no test of this folder may be skipped, so that a missing library is seen.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

if importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _plain_operations() -> Iterator[None]:
    import torch
    from torch_models import way

    torch.set_num_threads(1)
    with way("plain operations"), torch.enable_grad():
        yield


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """The Trainer's arguments set variables that accelerate reads, such as that for mixed precision."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _no_global_hooks_left() -> Iterator[None]:
    """A hook for all modules of a failed test would fail the others too."""
    from torch.nn.modules import module as torch_module

    tables = [
        table
        for name, table in vars(torch_module).items()
        if name.startswith("_global") and name.endswith("hooks") and isinstance(table, dict)
    ]
    yield
    for table in tables:
        table.clear()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
