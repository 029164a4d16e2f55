"""Shared by all tests: hypothesis profiles, no network, where the fixtures are."""

from __future__ import annotations

import os
from pathlib import Path

# Triton decides when it is imported whether kernels are interpreted. Without a GPU they are.
if not (Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()):
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import HealthCheck, settings

# transformers would look for files online; every test brings its own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# How long an example takes says how busy the machine is, nothing about the code: no deadline, no "too slow".
# Continuous integration draws the same examples each time; elsewhere each run looks somewhere new.
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI", "").lower() in ("1", "true") else "default")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def fixtures(repository: Path) -> Path:
    """The folder of the files that tests read: `tests/fixtures`."""
    return repository / "tests" / "fixtures"
