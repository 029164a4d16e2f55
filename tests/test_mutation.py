"""The mutants are what `tests/mutation` says they are, and its list of equivalent ones fits the source."""

from __future__ import annotations

import pytest
from mutation.equivalent import EQUIVALENT
from mutation.mutants import apply, sites
from mutation.run import ROOMS, ROOT, TESTS, Case, draw, judges_of


def changed(source: str) -> dict[str, list[str]]:
    """The mutants of one line, by operator."""
    found: dict[str, list[str]] = {}
    for mutant in sites(source):
        found.setdefault(mutant.operator, []).append(apply(source, mutant))
    return found


@pytest.mark.parametrize(
    ("source", "operator", "expected"),
    [
        ("é = (a) < (b)", "compare", ["é = (a) <= (b)"]),
        ("x = a <= b < c", "compare", ["x = a < b < c", "x = a <= b <= c"]),
        ("x = a not in b", "compare", ["x = a in b"]),
        ("x = a * b", "arithmetic", ["x = a / b"]),
        ("x = a + 'b'", "arithmetic", []),
        ("x -= y", "arithmetic", ["x += y"]),
        ("x -= y", "statement", ["pass"]),
        ("x = y", "statement", []),
        ("x = f(x)", "statement", ["pass"]),
        ("x[0] = y", "statement", ["pass"]),
        ("if a:\n    raise E(f'{x}: not {1 < 2}')", "statement", ["if a:\n    pass"]),
        ("if a:\n    raise E(f'{x}: not {1 < 2}')", "compare", []),
        ("x = a if b else c", "negate", ["x = a if (not (b)) else c"]),
        ("x = a and b or c", "boolean", ["x = a or b or c", "x = a and b and c"]),
        ("x = not a, -b", "unary", ["x = (a), -b", "x = not a, (b)"]),
        ("x = [1, 0.5, 2.0, True]", "constant", ["x = [2, 0.5, 2.0, True]", "x = [1, 0.505, 2.0, True]"]),
        ("x = 1e30", "constant", ["x = 1.01e+30"]),
        ("x = 'a', 'a b', f'a'", "string", ["x = 'a?', 'a b', f'a'"]),
        ("x = f(a, b, c=1)", "keyword", ["x = f(a, b)"]),
        ("x = zip(a, strict=True)", "keyword", []),
        ("x = zip(a, strict=True)", "constant", []),
        ("x = a.reshape(-1, 2)", "constant", ["x = a.reshape(-1, 3)"]),
        ("x = f(a, b, c=1)", "swap", ["x = f(b, a, c=1)"]),
        ("x = max(a, b)", "swap", []),
        ("x = max(a, b)", "name", ["x = min(a, b)"]),
        ("x = a[b:c, d]", "slice", ["x = a[(b) + 1:c, d]", "x = a[b:(c) + 1, d]"]),
        (
            "def f(x: int = 1) -> 'int':\n    'text'\n    return x",
            "return",
            ["def f(x: int = 1) -> 'int':\n    'text'\n    return None"],
        ),
        ("def f(x: int = 1) -> 'int':\n    'text'\n    return x", "string", []),
        ("if TYPE_CHECKING:\n    x = 1", "constant", []),
        ("__all__ = ['a']", "string", []),
    ],
)
def test_sites_are_the_changes_of_an_operator(source: str, operator: str, expected: list[str]) -> None:
    found = changed(source).get(operator, [])
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


@pytest.mark.parametrize("room", [*ROOMS, "reference/objectives", "kernels/training"])
def test_draw_is_repeatable_and_reaches_every_module(room: str) -> None:
    drawn = draw(room, 60, seed=1)
    assert drawn == draw(room, 60, seed=1)
    assert len({case.key for case in drawn}) == len(drawn)
    assert {case.module for case in drawn} == {
        f"{room}/{path.name}" for path in (ROOT / room).glob("*.py") if not path.name.startswith("__")
    }


@pytest.mark.parametrize("room", [*TESTS, "reference/training", "reference/tasks", "kernels/training"])
def test_every_entry_of_the_tests_of_a_room_names_some(room: str) -> None:
    assert judges_of(room)
    assert all(list(ROOT.glob(entry)) for entry in TESTS.get(room, ()))


def test_every_equivalent_mutant_is_one_of_the_source() -> None:
    """A line that was rewritten takes its entry along."""
    modules = {module for module, _, _ in EQUIVALENT}
    sources = {module: (ROOT / module).read_text(encoding="utf-8") for module in modules}
    made = {(name, *Case(name, mutant, text).change()) for name, text in sources.items() for mutant in sites(text)}
    assert [key for key in EQUIVALENT if key not in made] == []
