"""Launches of any kernel: recorded from a real call, or described by a signature.

    from ernie_m.kernels.machine_code import record, rows_of
    launches = record(my_gelu, torch.randn(512, 768, dtype=torch.bfloat16))
    rows = rows_of(launches, ["sm_90"])

`record` runs the call in Triton's interpreter. As in a launch on a GPU, the arguments give the types, whether pointers
and integers are multiples of 16, and the constants: arguments that are `tl.constexpr`, None, and integers equal to 1.
Kernels compile only in a process without the interpreter, so a launch names its kernel's file, and travels.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..runtime import interpreter, loading
from ..runtime.dispatch import INTERPRETED
from ..runtime.dtypes import name_of
from ..runtime.optional_triton import triton
from ..runtime.variants import Configuration, Variant

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
DTYPES = {kind: name_of(dtype) for dtype, kind in TYPES.items()}
# What a launch takes besides the kernel's own arguments, and Triton's defaults for those that matter here.
OPTIONS = {"num_warps": 4, "num_stages": 3}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, by the module and the file that it is in, and what it was specialised for.

    signature: the Triton type of every argument that is not a constant. constants: the values of the others.
    aligned: the pointers and integers that are known to be multiples of 16.
    """

    module: str
    file: str
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...]
    num_warps: int = OPTIONS["num_warps"]
    num_stages: int = OPTIONS["num_stages"]

    def __str__(self) -> str:
        types = (f"{kind}:16" if name in self.aligned else kind for name, kind in self.signature.items())
        constants = (f"{name}={value!r}" for name, value in self.constants.items())
        return f"{self.name}({', '.join((*types, *constants))}), {self.num_warps} warps, {self.num_stages} stages"

    def variant(self) -> Variant:
        """The kernel as the compiler takes it, loaded from its file."""
        kernel = loading.kernel(self.module, Path(self.file), self.name)
        pointed = [kind[1:] for kind in self.signature.values() if kind.startswith("*")]
        dtype = next((DTYPES[kind] for kind in pointed if kind in DTYPES), "")
        loose = [name for name, kind in self.signature.items() if kind.startswith("*") and name not in self.aligned]
        parts = [f"{name}={value}" for name, value in self.constants.items() if value is not None]
        label = " ".join([*parts, *([f"unaligned={','.join(loose)}"] if loose else [])])
        configuration = Configuration({}, self.num_warps, self.num_stages)
        described = (self.name, dtype, label, kernel, self.signature, self.constants, configuration)
        return Variant(*described, tile=0, aligned=self.aligned)


def record(function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Launch]:
    """Call `function` with these arguments in Triton's interpreter, and return its launches, each kind once.

    Raises RuntimeError without the interpreter, and ValueError if no kernel was launched or if an argument of a kernel
    is neither a tensor, a number nor a constant.
    """
    if not INTERPRETED:
        raise RuntimeError("record: expected Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported")
    interpreter.install()
    found: list[Launch] = []
    with _recording(found):
        function(*arguments, **options)
    if not found:
        raise ValueError(
            f"{getattr(function, '__name__', function)}: expected it to launch a Triton kernel, it did not"
        )
    return [launch for i, launch in enumerate(found) if launch not in found[:i]]


@contextmanager
def _recording(found: list[Launch]) -> Any:
    """Inside, launches are added to `found`, and run."""
    kind = interpreter.upstream.InterpretedFunction
    original = kind.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        found.append(_launch(self, args, kwargs))
        return original(self, *args, grid=grid, warmup=warmup, **kwargs)

    kind.run = run
    try:
        yield
    finally:
        kind.run = original


def _launch(kernel: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Launch:
    parameters = inspect.signature(kernel.fn).parameters
    own = {name: value for name, value in kwargs.items() if name in parameters}
    bound = inspect.signature(kernel.fn).bind(*args, **own)
    bound.apply_defaults()
    fixed = set(kernel.kwargs.get("do_not_specialize") or ())
    signature, constants, aligned = {}, {}, []
    for i, (name, value) in enumerate(bound.arguments.items()):
        constant = "constexpr" in str(parameters[name].annotation)
        if constant or value is None or (type(value) is int and value == 1 and not {i, name} & fixed):
            constants[name] = getattr(value, "value", value)
            continue
        signature[name] = type_of(name, value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if type(number) is int and number % 16 == 0 and not {i, name} & fixed:
            aligned.append(name)
    chosen = {name: kwargs.get(name, default) for name, default in OPTIONS.items()}
    place = (kernel.fn.__module__, inspect.getfile(kernel.fn), kernel.fn.__name__)
    return Launch(*place, signature, constants, tuple(aligned), **chosen)


def type_of(name: str, value: Any) -> str:
    """Triton's type of an argument. Raises ValueError for one that is neither a tensor nor a number."""
    if isinstance(value, torch.Tensor) and value.dtype in TYPES:
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"
    if isinstance(value, float):
        return "fp32"
    got = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
    raise ValueError(f"{name}: expected a tensor of numbers, a number or a constant, got {got}")


_TYPE = re.compile(r"(\*?(?:fp(?:16|32|64)|bf16|fp8e4nv|fp8e5|[iu](?:1|8|16|32|64)))(?::(1|16))?")


def described(file: Path, kernel: Any, types: str, constants: Sequence[str], **options: int) -> Launch:
    """A launch as the command line describes it.

    types: those of the arguments that are not constants, in order, such as "*bf16,*bf16,i32:16". `:16` says that an
    integer is a multiple of 16, `:1` that a pointer need not be; other pointers are.
    constants: NAME=VALUE. Constants with a default may be left out.

    Raises ValueError for a description that does not fit the kernel.
    """
    parameters = {parameter.name: parameter for parameter in kernel.params}
    values = dict(map(_constant, constants))
    for name in values:
        if name not in parameters:
            raise ValueError(f"--constants: expected any of {', '.join(parameters)}, got {name!r}")
    for name, parameter in parameters.items():
        if parameter.is_constexpr and name not in values:
            if not parameter.has_default:
                raise ValueError(f"--constants: expected {name}=VALUE, got none")
            values[name] = getattr(parameter.default, "value", parameter.default)
    names, given = [name for name in parameters if name not in values], types.replace(" ", "").split(",")
    if len(names) != len(given):
        raise ValueError(
            f"--signature: expected {len(names)} types, for {', '.join(names)}; got {len(given)}: {types!r}"
        )
    signature, aligned = {}, []
    for name, text in zip(names, given, strict=True):
        match = _TYPE.fullmatch(text)
        if match is None:
            raise ValueError(f"--signature: {name}: expected a type such as *bf16, i32, i32:16 or fp32, got {text!r}")
        signature[name] = match[1]
        if match[2] == "16" or (match[2] is None and text.startswith("*")):
            aligned.append(name)
    ordered = {name: values[name] for name in parameters if name in values}
    return Launch(kernel.fn.__module__, str(file), kernel.fn.__name__, signature, ordered, tuple(aligned), **options)


def _constant(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise ValueError(f"--constants: expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def is_kernel(found: Any) -> bool:
    """Whether it is a Triton kernel, compiled or interpreted."""
    return isinstance(found, triton.runtime.JITFunction) or (
        INTERPRETED and isinstance(found, interpreter.upstream.InterpretedFunction)
    )
