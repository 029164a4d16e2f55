"""Hooks for a conftest.py: in continuous integration a skipped test of its folder fails, unless it is marked `all`."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

# Where transformers 4.40.2 and what builds on it can be installed.
STRICT = os.environ.get("CI", "").lower() in ("1", "true") and sys.version_info < (3, 13)


def _forbid(report: Any, what: str) -> Any:
    """Turn a skip into a failure; a test that was expected to fail (xfail) is left alone."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{what} may not be skipped in continuous integration: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    return _forbid((yield), collector.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    return report if item.get_closest_marker("all") else _forbid(report, item.nodeid)
