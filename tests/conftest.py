"""Shared by all tests: hypothesis profiles, no network, and the paths of the checkout and the fixtures."""

from __future__ import annotations

import os
from pathlib import Path

# Triton decides on import whether to interpret kernels. Without a GPU, it must.
if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import HealthCheck, settings

# transformers would look for files online; the tests bring their own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The time of an example depends on how busy the machine is, not on the code: no deadline, no "too slow".
# Continuous integration draws the same examples every time; elsewhere each run draws new ones.
# `make test` draws half as many examples as `make test-all`, which names the profile `thorough`.
RELAXED = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=50, **RELAXED)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.register_profile("thorough", max_examples=100, **RELAXED)
settings.load_profile("ci" if os.environ.get("CI", "").lower() in ("1", "true") else "default")


# Files that hold the tests of gradients themselves; elsewhere gradients are further rows of tests about the checks.
OF_GRADIENTS = ("test_backward.py", "test_attention_backward.py", "test_twins.py", "test_gates.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the rows of gradients to `make test-all`: a check of five operations more, in each test of the checks."""
    for item in items:
        if "_vjp" in item.name.partition("[")[2] and item.path.name not in OF_GRADIENTS:
            item.add_marker("all")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def fixtures(repository: Path) -> Path:
    """The folder of the test data: `tests/fixtures`."""
    return repository / "tests" / "fixtures"
