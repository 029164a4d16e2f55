"""The house stands: who imports whom, wings that are all packed, a floor for the mathematics, pages that stay pages."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("kernels", "reference", "tokenizer")

# What each room may import besides itself and the standard library: anywhere, and inside a function.
OUTSIDE = {
    "tokenizer": ({"numpy", "sentencepiece"}, {"huggingface_hub", "torch"}),
    "reference": ({"numpy"}, {"safetensors", "threadpoolctl", "torch"}),
    "kernels": ({"numpy", "torch", "triton"}, {"hypothesis", "matplotlib", "transformers"}),
}
# The floors of a room, from the ground up: a module imports from its own floor and from those below. A name stands for
# a module or for a whole wing; the longest one that fits counts.
FLOORS = {
    "tokenizer": (),
    "reference": (
        ("array", "compat"),
        (
            *("erf", "gelu", "activations", "slopes", "softmax", "linear", "layer_norm", "attention", "first_token"),
            *("attention_groups", "dropped_layer_norm", "linear_cross_entropy"),
            *("embedding", "dropout", "padding", "losses", "config", "parameters", "trace", "outputs", "groups"),
        ),
        ("compare", "rounding", "rounding_back", "trace_torch", "checkpoint"),
        ("layouts", "encoder", "inputs", "passes", "targets", "pretrained"),
        ("model",),
        ("heads",),
        ("gradients", "objectives", "checkpoint.conversion"),
        ("training",),
        ("demo", "tasks", "training.evaluation"),
        ("cli", "training.corpus.__main__"),
    ),
    "kernels": (
        ("runtime",),
        (
            *(
                "normal",
                "partials",
                "gelu",
                "gelu_backward",
                "layer_norm",
                "layer_norm_backward",
                "dropped_layer_norm",
                "dropped_layer_norm_backward",
                "sequences",
                "attention",
                "attention_vjp",
                "attention_backward",
                "attention_groups",
                "attention_groups_backward",
                "attention_groups_vjp",
                "rectangles",
                "first_token",
                "first_token_backward",
                "embedding",
                "embedding_backward",
                "losses",
                "linear_cross_entropy",
                "linear_cross_entropy_backward",
                "padding",
                "activations",
            ),
            *("philox", "dropout", "dropping", "trace", "inputs", "targets", "outputs"),
        ),
        ("layouts", "encoded", "self_attention", "encoder", "surgery", "recomputing", "pretrained"),
        ("model",),
        ("head", "heads", "words"),
        ("training",),
        ("checking",),
        ("benchmark", "machine_code"),
        ("cli", "training.experiment"),
    ),
}
# Which other rooms a room may use: all of it, or only the parts named. `files` replaces files for everybody,
# and `hub` downloads for everybody.
NEIGHBOURS = {
    "tokenizer": {},
    "reference": {"tokenizer": ("files", "new_files", "hub")},
    "kernels": {"reference": (), "tokenizer": ("files", "new_files", "hub")},
}
# Wings that may use what the rest of their room may not: "name" anywhere, "(name)" in a function.
MORE = {
    "reference.training.corpus": ("fluent", "lxml", "scipy", "sentencepiece"),
    "reference.demo": ("ernie_m.tokenizer",),
    "reference.tasks": ("ernie_m.tokenizer", "(ernie_m.kernels)"),
    "reference.training": ("ernie_m.tokenizer",),
    "reference.cli": ("ernie_m.tokenizer", "(ernie_m.kernels)"),
    "kernels.cli": ("ernie_m.reference.cli", "ernie_m.tokenizer"),
    "kernels.training": ("ernie_m.tokenizer",),
    "kernels.training.experiment": ("ernie_m.reference.cli", "ernie_m.tokenizer", "(scipy)"),
    "kernels.benchmark.cpu_tokenizer": ("(ernie_m.tokenizer)", "(sentencepiece)"),
}
# Lines of a file and of a function, in the rooms that are read as pages (the aim is 220 and 40).
MAX_FILE_LINES = 260
MAX_FUNCTION_LINES = 60

INSTALLED = os.environ.get("ERNIE_M_TEST_INSTALLED") == "1"
only_installed = pytest.mark.skipif(not INSTALLED, reason="judges the installed wheel: run `make test`")


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


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
            # What is imported may itself be a module: `from ernie_m import reference`, `from . import bounds`.
            dot = "" if module.endswith(".") else "."
            yield from ((f"{module}{dot}{alias.name}", node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.Call) and (called := _called_import(node)):
            yield called, node.lineno, deferred
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            for child, later in [(node.body, True), (node.orelse, deferred)]:
                yield from imports(ast.Module(child, []), later)
            continue
        inside = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, inside)


def module_of(file: str) -> str:
    """`ernie_m.room.wing.module` of a file such as "room/wing/module.py"; of an `__init__.py`, the package."""
    parts = ["ernie_m", *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def absolute(name: str, file: str) -> str:
    """An imported name, with its leading dots resolved."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    package = ["ernie_m", *Path(file).parent.parts]
    return ".".join([*package[: len(package) - dots + 1], name.lstrip(".")])


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def floor(name: str) -> int | None:
    """The floor of a module of a room; None for its `__init__` and `__main__`, which stand outside."""
    _, room, *rest = name.split(".")
    inside = ".".join(rest)
    fits = [(len(part), i) for i, parts in enumerate(FLOORS[room]) for part in parts if within(inside, part)]
    return max(fits)[1] if fits else None


def allowed(file: str, name: str, deferred: bool) -> bool:
    """Whether the file of a room may import that name, at once or (`deferred`) when a function is called."""
    own, room = module_of(file), Path(file).parts[0]
    for wing, extras in MORE.items():
        if within(own, f"ernie_m.{wing}"):
            if any(within(name, extra) for extra in extras):
                return True
            if deferred and any(within(name, extra.strip("()")) for extra in extras):
                return True
    top = name.split(".")[0]
    if top != "ernie_m":
        anywhere, in_functions = OUTSIDE[room]
        return top in sys.stdlib_module_names or top in anywhere or (deferred and top in in_functions)
    neighbour, *rest = name.split(".")[1:]
    if rest[:1] == ["cli"] and not within(own, f"ernie_m.{room}.cli") and not own.endswith("__main__"):
        return False
    if neighbour != room:
        parts = NEIGHBOURS[room].get(neighbour)
        return parts is not None and (not parts or (rest[:1] and rest[0] in parts))
    here, there = floor(own), floor(name)
    return here is None or there is None or there <= here


def wrong_arrows(file: str, source: str) -> list[str]:
    """One line for each import in `source`, the text of `file`, that it may not have."""
    return [
        f"{file}:{line}: may not import {name}{'' if deferred else ' (outside a function)'}"
        for name, line, deferred in imports(ast.parse(source))
        if not allowed(file, absolute(name, file), deferred)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in sources(room)}
    found = [text for file, path in files.items() for text in wrong_arrows(file, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("room", [room for room in ROOMS if FLOORS[room]])
def test_every_module_has_a_floor(room: str) -> None:
    names = [module_of(path.relative_to(ROOT).as_posix()) for path in sources(room)]
    outside = {f"ernie_m.{room}", f"ernie_m.{room}.__main__"}
    assert [name for name in names if floor(name) is None and name not in outside] == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_goes_round_in_a_circle(room: str) -> None:
    """Imports that wait for a call aside."""
    files = {module_of(path.relative_to(ROOT).as_posix()): path for path in sources(room)}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        if path.name == "__init__.py":
            continue
        file = path.relative_to(ROOT).as_posix()
        names = {absolute(name, file) for name, _, later in imports(ast.parse(path.read_text("utf-8"))) if not later}
        # `from .padding import pad` gives `padding.pad`, whose module is `padding`.
        found = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found if name in files and files[name].name != "__init__.py"} - {module}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("reference/model.py", "import math, numpy.fft\nfrom .config import x\nimport ernie_m.reference", 0),
        ("reference/model.py", "import torch", 1),
        ("reference/model.py", "import safetensors.numpy", 1),
        ("reference/model.py", "class A:\n  def f(self):\n    import torch\n    from safetensors import x", 0),
        ("reference/model.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import torch", 0),
        ("reference/model.py", "if not TYPE_CHECKING:\n  import torch", 1),
        ("reference/model.py", "try:\n  import torch\nexcept ImportError:\n  pass", 1),
        ("reference/model.py", "import importlib\nx = importlib.import_module('torch')", 1),
        ("reference/model.py", "def f():\n  import sentencepiece", 1),
        ("reference/model.py", "def f():\n  from ernie_m.tokenizer import ErnieMTokenizer", 1),
        ("reference/model.py", "def f():\n  from ernie_m import tokenizer", 1),
        ("reference/model.py", "def f():\n  from ernie_m.tokenizer.new_files import replacing", 0),
        ("reference/model.py", "def f():\n  from ernie_m.tokenizer import hub", 0),
        ("reference/model.py", "import reference.config", 1),
        ("reference/model.py", "from .. import tokenizer", 1),
        ("reference/model.py", "from .heads import x\nfrom . import tasks", 2),
        ("reference/gelu.py", "from . import encoder\nfrom .checkpoint import open_checkpoint", 2),
        ("reference/checkpoint/reading.py", "from ..heads import x\nfrom .conversion import convert", 2),
        ("reference/checkpoint/conversion.py", "from ..heads import x\nfrom .reading import y", 0),
        ("reference/tasks/encoder.py", "from ernie_m.tokenizer import x\nfrom ..model import ErnieMModel", 0),
        ("reference/tasks/encoder.py", "def f():\n  import ernie_m.kernels", 0),
        ("reference/tasks/encoder.py", "import ernie_m.kernels\nfrom ..cli import input", 2),
        ("reference/cli/encode.py", "from ernie_m.tokenizer import ErnieMTokenizer\nfrom .input import x", 0),
        ("reference/__main__.py", "from .cli import main\nimport ernie_m.kernels", 1),
        ("tokenizer/batch.py", "import numpy, sentencepiece\ndef f():\n  import torch", 0),
        ("tokenizer/batch.py", "import torch\nimport ernie_m.reference", 2),
        ("tokenizer/hub.py", "import huggingface_hub\ndef f():\n  import huggingface_hub", 1),
        ("reference/model.py", "def f():\n  import huggingface_hub", 1),
        ("kernels/gelu.py", "import torch, triton.language\nfrom ernie_m.reference import gelu", 0),
        ("kernels/gelu.py", "import ernie_m.tokenizer, transformers", 2),
        ("kernels/gelu.py", "from .checking import bounds\nfrom .runtime.dtypes import widen", 1),
        ("kernels/checking/check.py", "def f():\n  import hypothesis, matplotlib.pyplot", 0),
        ("kernels/checking/check.py", "from ..machine_code import gates\nfrom ..cli.check import load", 2),
        ("kernels/checking/verify.py", "from ernie_m.reference.cli.command import ERROR", 1),
        ("kernels/machine_code/report.py", "from ..checking.operations import OPERATIONS", 0),
        ("kernels/cli/verify.py", "from ernie_m.reference.cli.command import ERROR\nfrom ..checking import verify", 0),
    ],
)
def test_wrong_arrows_sees_each_form_of_import(file: str, source: str, wrong: int) -> None:
    assert len(wrong_arrows(file, source)) == wrong


def test_no_file_imports_a_room_by_its_bare_name() -> None:
    files = [path for folder in (*ROOMS, "tests", "notebooks") for path in (ROOT / folder).rglob("*.py")]
    bare = [
        f"{path.relative_to(ROOT)}:{line}: import ernie_m.{module}"
        for path in sorted(files)
        for module, line, _ in imports(ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] in ROOMS
    ]
    assert not bare, "\n".join(bare)


def test_nobody_but_a_command_line_imports_one() -> None:
    """Notebooks neither: what they need belongs in `demo` or `tasks`."""
    users = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sorted((ROOT / "notebooks").rglob("*.py"))
        for module, line, _ in imports(ast.parse(path.read_text(encoding="utf-8")))
        if module.startswith("ernie_m.") and module.split(".")[2:3] == ["cli"]
    ]
    assert not users, "\n".join(users)


def packages() -> list[str]:
    """Every package of the tree."""
    return sorted(
        f"ernie_m.{'.'.join(path.parent.relative_to(ROOT).parts)}"
        for room in ROOMS
        for path in sources(room)
        if path.name == "__init__.py"
    )


def test_pyproject_lists_every_package() -> None:
    """One that is not listed vanishes from the wheel; so does a folder of Python files without an `__init__.py`."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == packages()
    assert setuptools["package-dir"] == {f"ernie_m.{room}": room for room in ROOMS}
    assert all("py.typed" in setuptools["package-data"][f"ernie_m.{room}"] for room in ROOMS)
    assert all((ROOT / room / "py.typed").is_file() for room in ROOMS)
    bare = {str(path.parent.relative_to(ROOT)) for room in ROOMS for path in sources(room)}
    assert {f"ernie_m.{folder.replace(os.sep, '.')}" for folder in bare} == set(packages())


def test_a_rooms_own_floor_holds_no_plumbing() -> None:
    """Names with the prefix of a wing were how wings began."""
    prefixes = ("cli_", "check_", "bench_", "compile_", "config_", "checkpoint_", "bounds_", "verify")
    found = [path.name for room in ROOMS for path in (ROOT / room).glob("*.py") if path.name.startswith(prefixes)]
    assert not found


def test_a_wing_is_not_called_like_a_public_function() -> None:
    for room in ROOMS:
        public = importlib.import_module(f"ernie_m.{room}").__all__
        wings = {name.split(".")[2] for name in packages() if name.startswith(f"ernie_m.{room}.")}
        assert not wings & set(public)


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_functions_stay_a_page(room: str) -> None:
    long = []
    for path in sources(room):
        source = path.read_text(encoding="utf-8")
        file = path.relative_to(ROOT).as_posix()
        sizes = [(file, len(source.splitlines()), MAX_FILE_LINES)]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                last = node.end_lineno or node.lineno
                sizes.append((f"{file}:{node.name}", last - node.lineno + 1, MAX_FUNCTION_LINES))
        long += [f"{name}: {lines} lines, at most {limit}" for name, lines, limit in sizes if lines > limit]
    assert not long, "\n".join(long)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ernie_m.reference.cli_model", "ernie_m.reference.cli.model"),
        ("ernie_m.reference.files", "ernie_m.tokenizer.files"),
        ("ernie_m.kernels.check", "ernie_m.kernels.checking.check"),
        ("ernie_m.kernels.shipped", "ernie_m.kernels.runtime.variants"),
    ],
)
def test_a_module_that_moved_says_where_it_is(old: str, new: str) -> None:
    package, _, name = old.rpartition(".")
    for statement in (f"import {old}", f"from {old} import x", f"import importlib; importlib.import_module({old!r})"):
        with pytest.raises(ImportError, match=rf"{old} has moved to {new}"):
            exec(statement, {})
    if not hasattr(importlib.import_module(package), name):
        with pytest.raises(ImportError, match=rf"{old} has moved to {new}"):
            exec(f"from {package} import {name}", {})
    importlib.import_module(new)


def test_every_moved_module_has_arrived_and_none_stands_in_its_place() -> None:
    for room in ("reference", "kernels"):
        moved = importlib.import_module(
            "ernie_m.reference.compat" if room == "reference" else "ernie_m.kernels.runtime.moved"
        ).MOVED
        for old, new in moved.items():
            assert not (ROOT / room / f"{old}.py").exists() and not (ROOT / room / old / "__init__.py").exists(), old
            importlib.import_module(new)
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module("ernie_m.reference.never_there")


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
@pytest.mark.parametrize("room", ROOMS)
def test_the_installed_wheel_is_what_is_tested_and_holds_the_tree(room: str) -> None:
    """Every file of the room and no other; but for pages of Markdown, of which only the model card is packed."""
    installed = Path(str(importlib.import_module(f"ernie_m.{room}").__file__)).resolve().parent
    assert installed == Path(sysconfig.get_path("purelib")).resolve() / "ernie_m" / room

    def files(folder: Path) -> dict[str, bytes]:
        kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}
        return {name: data for name, data in found.items() if name[-3:] != ".md" or name == "demo/README.md"}

    tree, wheel = files(ROOT / room), files(installed)
    assert sorted(tree) == sorted(wheel)
    assert [name for name in tree if tree[name] != wheel[name]] == []


@only_installed
@pytest.mark.parametrize("oracle", ["torch", "transformers"])
def test_the_oracles_are_installed(oracle: str) -> None:
    if oracle == "transformers" and sys.version_info >= (3, 13):
        pytest.skip("transformers 4.40.2 cannot be installed on Python 3.13: its tokenizers has no wheel for it")
    importlib.import_module(oracle)
