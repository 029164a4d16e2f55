"""Small changes to a Python source, each of which a test should notice.

`sites(source)` lists every change; `apply` makes one of them. The operators are those of `Finder`: an operator replaced
by its neighbour, a number or a string changed, a condition negated, an argument dropped or two swapped, a bound of a
slice moved, a statement or a result left out. Names, imports, types, docstrings, `__all__`, decorators, the text of
errors and warnings, f-strings, strings with a blank in them (prose), `strict` of `zip` and -1 of `reshape` are left
alone.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

BINARY = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
    ast.MatMult: ("@", "*"),
}
COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
# Whose arguments are not swapped: it would change nothing, or not run at all.
SYMMETRIC = {"max", "min", "maximum", "minimum", "fmax", "add", "multiply", "equal", "result_type"}
SYMMETRIC |= {"isinstance", "hasattr", "getattr"}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True)
class Mutant:
    """Bytes `start` to `end` of a source become `new`."""

    operator: str
    line: int
    start: int
    end: int
    new: str


def apply(source: str, mutant: Mutant) -> str:
    data = source.encode()
    return (data[: mutant.start] + mutant.new.encode() + data[mutant.end :]).decode()


def sites(source: str) -> list[Mutant]:
    """Every mutant of `source`, in the order of the file."""
    finder = Finder(source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.found), key=lambda mutant: (mutant.start, mutant.end, mutant.operator, mutant.new))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


class Finder(ast.NodeVisitor):
    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        start, end = self.span(node)
        return self.data[start:end].decode()

    def replace(self, operator: str, node: ast.expr | ast.stmt, new: str) -> None:
        self.found.append(Mutant(operator, node.lineno, *self.span(node), new))

    def between(self, operator: str, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace the sign between two operands; parentheses may stand around them."""
        start, end = self.span(left)[1], self.span(right)[0]
        at = start + self.data[start:end].decode().index(old)
        self.found.append(Mutant(operator, left.lineno, at, at + len(old), new))

    def visit_all(self, *nodes: ast.AST | None) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # What is left alone.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not any(getattr(mark, "id", getattr(mark, "attr", "")) == "overload" for mark in node.decorator_list):
            self.visit_all(*node.args.defaults, *node.args.kw_defaults, *node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(*node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit_all(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    # Statements.

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & {"__all__", "__slots__", "__match_args__"}:
            return
        read = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
        if names & read or not all(isinstance(target, (ast.Name, ast.Tuple)) for target in node.targets):
            self.replace("statement", node, "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace("statement", node, "pass")
        old, new = BINARY[type(node.op)]
        self.between("arithmetic", node.target, node.value, f"{old}=", f"{new}=")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, (ast.Constant, ast.Yield, ast.YieldFrom)):
            self.replace("statement", node, "pass")
        if not (isinstance(node.value, ast.Constant) or self.text(node).startswith("warnings.warn")):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self.replace("statement", node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.replace("statement", node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self.replace("statement", node, "continue")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.replace("return", node.value, "None")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if getattr(node.test, "id", getattr(node.test, "attr", None)) == "TYPE_CHECKING":
            self.visit_all(*node.orelse)
        else:
            self.condition(node.test)
            self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def condition(self, test: ast.expr) -> None:
        self.replace("negate", test, f"(not ({self.text(test)}))")

    # Expressions.

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not (_is_text(node.left) or _is_text(node.right)):
            self.between("arithmetic", node.left, node.right, *BINARY[type(node.op)])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, sign, right in zip(operands, node.ops, operands[1:], strict=False):
            self.between("compare", left, right, *COMPARISONS[type(sign)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between("boolean", left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub, ast.Invert)) and not isinstance(node.operand, ast.Constant):
            self.replace("unary", node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace("constant", node, str(not value))
        elif isinstance(value, int):
            self.replace("constant", node, str(value + 1))
        elif isinstance(value, float):
            self.replace(
                "constant", node, repr(value + 1 if value.is_integer() and value + 1 > value else value * 1.01)
            )
        elif isinstance(value, str) and value.strip() and " " not in value:
            self.replace("string", node, repr(value + "?"))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            if isinstance(part, ast.Slice):
                for bound in (part.lower, part.upper):
                    if bound is not None:
                        self.replace("slice", bound, f"({self.text(bound)}) + 1")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        if name in NAMES:
            end = self.span(node.func)[1]
            self.found.append(Mutant("name", node.lineno, end - len(name.encode()), end, NAMES[name]))
        if name in ("cast", "TypeVar", "getLogger"):
            self.visit_all(*node.args[1:])
            return
        arguments: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        texts = [self.text(argument) for argument in arguments]
        # `zip` has one, `strict`, which guards against later changes of the code.
        keywords = [] if name == "zip" else node.keywords
        for i in range(len(node.args), len(node.args) + len(keywords)):
            self.call("keyword", node, texts[:i] + texts[i + 1 :])
        starred = any(isinstance(argument, ast.Starred) for argument in node.args[:2])
        if len(node.args) > 1 and not starred and name not in SYMMETRIC:
            self.call("swap", node, [texts[1], texts[0], *texts[2:]])
        # For -1, `reshape` takes any negative number.
        args = [arg for arg in node.args if name != "reshape" or self.text(arg) != "-1"]
        self.visit_all(node.func, *args, *keywords)

    def call(self, operator: str, node: ast.Call, arguments: list[str]) -> None:
        self.replace(operator, node, f"{self.text(node.func)}({', '.join(arguments)})")
