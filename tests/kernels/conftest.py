"""Without a GPU, kernels are tested in Triton's interpreter, with bfloat16 made exact."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    from ernie_m.kernels.runtime import interpreter
    from ernie_m.kernels.runtime.dispatch import INTERPRETED

    # One thread: the tests run in two processes on two cores.
    torch.set_num_threads(1)
    if INTERPRETED:
        interpreter.install()


@pytest.fixture(scope="session")
def device() -> str:
    """The device that the kernels under test run on."""
    return "cpu" if INTERPRETED else "cuda"
