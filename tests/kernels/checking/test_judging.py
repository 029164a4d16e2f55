"""The catalogue of planted faults: `check` sees each of them and refuses no right function, and the README says so.

Seen red: with a right function among the faults, with a wrong one among the right ones, with an edited README.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import settings
from judging import table
from judging.faults import FAULTS
from judging.field import TESTS
from judging.judge import refusal
from judging.right import RIGHTS

from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.examples import EXAMPLES
from ernie_m.kernels.checking.operations import OPERATIONS
from ernie_m.kernels.runtime.dispatch import INTERPRETED

only_interpreted = pytest.mark.skipif(not INTERPRETED, reason="faults in addresses would damage memory on a GPU")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return dict(json.loads(table.RESULTS.read_text(encoding="utf-8")))


def drawn(names: list[str], i: int, count: int) -> str:
    """One of the i-th part of the names: others in each run, but the same in continuous integration."""
    seed = 0 if settings.default.derandomize else None
    return random.Random(seed).choice(names[i::count])


def test_the_catalogue_has_faults_and_right_functions_for_everything() -> None:
    # The faults of gradients are in planted_gradients.py, and tests/kernels/test_backward.py meets them all.
    everything = {*(name for name in OPERATIONS if not name.endswith("_vjp")), *EXAMPLES}
    assert {fault.op for fault in FAULTS.values()} == {right.op for right in RIGHTS.values()} == everything


def test_every_function_of_the_catalogue_has_a_row(results: dict[str, Any]) -> None:
    assert set(results["faults"]) == set(FAULTS) and set(results["right"]) == set(RIGHTS)
    for row in (*results["faults"].values(), *results["right"].values()):
        assert list(row["field"]) == [test.name for test in TESTS]


def test_check_has_seen_every_fault_and_refused_nothing_right(results: dict[str, Any]) -> None:
    assert [name for name, row in results["faults"].items() if not row["check"]] == []
    assert {name: row["check"] for name, row in results["right"].items() if row["check"]} == {}


def test_the_readme_is_what_the_results_say(results: dict[str, Any]) -> None:
    assert table.README.read_text(encoding="utf-8") == table.readme(results), "run `make judge`"


def test_the_links_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", table.README.read_text(encoding="utf-8"))
    assert len(links) > 5 and [link for link in links if not (table.README.parent / link).exists()] == []


@only_interpreted
@pytest.mark.parametrize("i", range(8))
def test_a_drawn_fault_is_seen(i: int, results: dict[str, Any]) -> None:
    name = drawn([name for name, row in sorted(results["faults"].items()) if row["quick"]], i, 8)
    assert refusal(lambda: check(FAULTS[name].make(), FAULTS[name].operation, quick=True)), name


@pytest.mark.parametrize("i", range(4))
def test_a_drawn_right_function_passes(i: int) -> None:
    right = RIGHTS[drawn(sorted(RIGHTS), i, 4)]
    assert check(right.function, right.operation, quick=True, **right.options)


@pytest.mark.all
@only_interpreted
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_fault_is_seen(name: str) -> None:
    """Rows that are done are kept in `build/judging`, so that a run that was stopped goes on."""
    assert table.row("faults", name)["check"]


@pytest.mark.all
@only_interpreted
@pytest.mark.parametrize("name", sorted(RIGHTS))
def test_every_right_function_passes_at_all_seeds(name: str) -> None:
    assert table.row("right", name)["check"] is None
