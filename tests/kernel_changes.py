"""Small changes to the kernels of a page, one at a time, as a mutation tool makes them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

Change = Callable[[ast.Call], ast.expr | None]


def same(call: ast.Call) -> ast.expr:
    """Nothing changes: the kernels as the others are made."""
    return call


def without_int64(call: ast.Call) -> ast.expr | None:
    """x.to(tl.int64) and tl.cast(x, tl.int64) become x."""
    if not (call.args and ast.unparse(call.args[-1]) == "tl.int64" and isinstance(call.func, ast.Attribute)):
        return None
    return call.func.value if call.func.attr == "to" else call.args[0]


def without(*names: str) -> Change:
    """tl.load and tl.store lose these arguments; the first must be there."""

    def change(call: ast.Call) -> ast.expr | None:
        given = [keyword.arg for keyword in call.keywords]
        if ast.unparse(call.func) not in ("tl.load", "tl.store") or names[0] not in given:
            return None
        return ast.Call(call.func, call.args, [keyword for keyword in call.keywords if keyword.arg not in names])

    return change


class _Nth(ast.NodeTransformer):
    """Applies a change to the nth call that it fits, and makes loop variables int32.

    As on a GPU; in the interpreter they are numbers of Python, which never overflow.
    """

    def __init__(self, change: Change, n: int) -> None:
        self.change, self.left, self.found = change, n, ""

    def visit_Call(self, call: ast.Call) -> ast.expr:
        self.generic_visit(call)
        changed = self.change(call)
        if changed is None:
            return call
        self.left -= 1
        if self.left == -1:
            self.found = ast.unparse(call)
            return changed
        return call

    def visit_For(self, loop: ast.For) -> ast.For:
        self.generic_visit(loop)
        name = ast.unparse(loop.target)
        if ast.unparse(loop.iter).startswith("tl.range("):
            loop.body[:0] = ast.parse(f"{name} = tl.cast({name}, tl.int32)").body
        return loop


def changed_kernels(page: ModuleType, change: Change, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each call that the change fits, as text, and all kernels of the page by name, with that call changed."""
    source = Path(str(page.__file__)).read_text(encoding="utf-8")
    n = 0
    while True:
        functions = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.decorator_list]
        functions = [x for x in functions if ast.unparse(x.decorator_list[0]) == "triton.jit"]
        nth = _Nth(change, n)
        text = "\n\n".join(ast.unparse(ast.fix_missing_locations(nth.visit(function))) for function in functions)
        if not nth.found:
            return
        # Triton reads the source of a kernel from its file.
        file = folder / f"{page.__name__}_{n}.py"
        file.write_text(text, encoding="utf-8")
        names = dict(vars(page))
        exec(compile(text, str(file), "exec"), names)
        yield nth.found, {function.name: names[function.name] for function in functions}
        n += 1
