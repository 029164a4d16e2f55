"""The rooms stay what they are: who imports whom, flat packages that are all packed, pages that stay pages."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Rule:
    """What a room may import besides itself and the standard library."""

    anywhere: frozenset[str]
    in_functions: frozenset[str] = frozenset()
    # In the command line's files, besides the above.
    in_command_line: frozenset[str] = frozenset()
    command_line: tuple[str, ...] = ("cli*.py", "verify*.py", "__main__.py")


RULES = {
    "tokenizer": Rule(frozenset({"numpy", "sentencepiece"}), in_functions=frozenset({"torch"})),
    "reference": Rule(
        frozenset({"numpy"}),
        in_functions=frozenset({"safetensors", "torch"}),
        in_command_line=frozenset({"ernie_m.tokenizer"}),
    ),
    "kernels": Rule(
        frozenset({"numpy", "torch", "triton", "ernie_m.reference"}),
        in_functions=frozenset({"safetensors", "hypothesis", "matplotlib", "transformers"}),
        in_command_line=frozenset({"ernie_m.tokenizer"}),
    ),
}
# Lines of a file, and of a function, in the rooms that are read as pages (aimed at: 220 and 40).
PAGES = ("kernels", "reference", "tokenizer")
MAX_FILE_LINES = 260
MAX_FUNCTION_LINES = 60

PRESENT = [room for room in RULES if any((ROOT / room).glob("*.py"))]
INSTALLED = os.environ.get("ERNIE_M_TEST_INSTALLED") == "1"
only_installed = pytest.mark.skipif(not INSTALLED, reason="judges the installed wheel: run `make test`")


def _is_type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", None)) == "TYPE_CHECKING"


def _called_import(node: ast.Call) -> str | None:
    """`import_module("x")` and `__import__("x")` are imports too."""
    name = getattr(node.func, "id", getattr(node.func, "attr", None))
    if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module with its leading dots, line, whether it waits for a call or for a type checker) of every import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from ernie_m import reference` names a room only in what it imports.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ernie_m" else [module]
            yield from ((name, node.lineno, deferred) for name in names)
        elif isinstance(node, ast.Call) and (called := _called_import(node)):
            yield called, node.lineno, deferred
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child, later in [(node.body, True), (node.orelse, deferred)]:
                yield from imports(ast.Module(child, []), later)
            continue
        inside = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, inside)


def _name(module: str) -> str:
    """What the rules speak of: `ernie_m.<room>`, or a distribution's top-level name."""
    return ".".join(module.split(".")[: 2 if module.startswith("ernie_m") else 1])


def wrong_arrows(room: str, file: str, source: str) -> list[str]:
    """One line for each import in `source` that `room` may not have in `file`."""
    rule = RULES[room]
    allowed_now = rule.anywhere | {f"ernie_m.{room}"}
    if any(fnmatch.fnmatch(file, pattern) for pattern in rule.command_line):
        allowed_now |= rule.in_command_line
    found = []
    for module, line, deferred in imports(ast.parse(source)):
        if module.startswith("..") or not (
            module.startswith(".")
            or _name(module) in sys.stdlib_module_names
            or _name(module) in (allowed_now | rule.in_functions if deferred else allowed_now)
        ):
            when = "" if deferred or _name(module) not in rule.in_functions else " outside a function"
            found.append(f"{room}/{file}:{line}: {room} may not import {module}{when}")
    return found


@pytest.mark.parametrize("room", PRESENT)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = sorted((ROOT / room).glob("*.py"))
    found = [text for path in files for text in wrong_arrows(room, path.name, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "file", "source", "wrong"),
    [
        ("reference", "model.py", "import math, numpy.fft\nfrom .config import x\nimport ernie_m.reference", 0),
        ("reference", "model.py", "import torch", 1),
        ("reference", "model.py", "import safetensors.numpy", 1),
        ("reference", "model.py", "class A:\n  def f(self):\n    import torch\n    from safetensors import x", 0),
        ("reference", "model.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import torch", 0),
        ("reference", "model.py", "if not TYPE_CHECKING:\n  import torch", 1),
        ("reference", "model.py", "try:\n  import torch\nexcept ImportError:\n  pass", 1),
        ("reference", "model.py", "import importlib\nx = importlib.import_module('torch')", 1),
        ("reference", "model.py", "def f():\n  import sentencepiece", 1),
        ("reference", "model.py", "def f():\n  from ernie_m.tokenizer import ErnieMTokenizer", 1),
        ("reference", "model.py", "def f():\n  from ernie_m import tokenizer", 1),
        ("reference", "model.py", "import reference.config", 1),
        ("reference", "model.py", "from .. import tokenizer", 1),
        ("reference", "cli_encode.py", "from ernie_m.tokenizer import ErnieMTokenizer", 0),
        ("reference", "__main__.py", "import ernie_m.kernels", 1),
        ("tokenizer", "batch.py", "import numpy, sentencepiece\ndef f():\n  import torch", 0),
        ("tokenizer", "batch.py", "import torch\nimport ernie_m.reference", 2),
        ("kernels", "gelu.py", "import torch, triton.language\nfrom ernie_m.reference import gelu", 0),
        ("kernels", "gelu.py", "import ernie_m.tokenizer, transformers", 2),
        ("kernels", "check.py", "def f():\n  import hypothesis, matplotlib.pyplot", 0),
    ],
)
def test_wrong_arrows_sees_each_form_of_import(room: str, file: str, source: str, wrong: int) -> None:
    assert len(wrong_arrows(room, file, source)) == wrong


def test_no_file_imports_a_room_by_its_bare_name() -> None:
    folders = [*RULES, "tests", "notebooks"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    bare = [
        f"{path.relative_to(ROOT)}:{line}: import ernie_m.{module}"
        for path in sorted(files)
        for module, line, _ in imports(ast.parse(path.read_text(encoding="utf-8")))
        if _name(module) in RULES
    ]
    assert not bare, "\n".join(bare)


def test_packages_lists_every_room_and_maps_it() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(f"ernie_m.{room}" for room in PRESENT)
    assert setuptools["package-dir"] == {f"ernie_m.{room}": room for room in PRESENT}
    assert all("py.typed" in setuptools["package-data"][f"ernie_m.{room}"] for room in PRESENT)


@pytest.mark.parametrize("room", PRESENT)
def test_rooms_are_flat_typed_packages(room: str) -> None:
    assert (ROOT / room / "__init__.py").is_file()
    assert (ROOT / room / "py.typed").is_file()
    inner = [str(path.relative_to(ROOT)) for path in (ROOT / room).rglob("__init__.py") if path.parent != ROOT / room]
    assert not inner, f"a sub-package that `packages` does not list vanishes from the wheel: {inner}"


@pytest.mark.parametrize("room", [room for room in PAGES if room in PRESENT])
def test_files_and_functions_stay_a_page(room: str) -> None:
    long = []
    for path in sorted((ROOT / room).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        sizes = [(path.name, len(source.splitlines()), MAX_FILE_LINES)]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                last = node.end_lineno or node.lineno
                sizes.append((f"{path.name}:{node.name}", last - node.lineno + 1, MAX_FUNCTION_LINES))
        long += [f"{room}/{name}: {lines} lines, at most {limit}" for name, lines, limit in sizes if lines > limit]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ernie_m.reference", {"torch", "triton", "transformers", "safetensors", "sentencepiece"}),
        ("ernie_m.tokenizer", {"torch", "triton", "transformers", "safetensors"}),
    ],
)
def test_importing_a_room_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.split())


@only_installed
@pytest.mark.parametrize("room", PRESENT)
def test_the_installed_wheel_is_what_is_tested_and_holds_every_file(room: str) -> None:
    installed = Path(str(importlib.import_module(f"ernie_m.{room}").__file__)).resolve().parent
    assert installed == Path(sysconfig.get_path("purelib")).resolve() / "ernie_m" / room
    data = [path for path in (ROOT / room / "demo").glob("*") if path.is_file() and path.suffix != ".py"]
    for path in [*(ROOT / room).glob("*.py"), ROOT / room / "py.typed", *data]:
        twin = installed / path.relative_to(ROOT / room)
        assert twin.is_file(), f"{path.relative_to(ROOT)} is not in the wheel"
        assert twin.read_bytes() == path.read_bytes(), f"{path.relative_to(ROOT)}: the wheel holds another version"


@only_installed
@pytest.mark.parametrize("oracle", ["torch", "transformers"])
def test_the_oracles_are_installed(oracle: str) -> None:
    if oracle == "transformers" and sys.version_info >= (3, 13):
        pytest.skip("transformers 4.40.2 cannot be installed on Python 3.13: its tokenizers has no wheel for it")
    importlib.import_module(oracle)
