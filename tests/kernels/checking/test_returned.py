"""What a function under `check` may return: a plain array of the right kind; anything else is told in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ernie_m import reference
from ernie_m.kernels.activations import activate
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.checking.report import Failure

# torch warns of kinds of tensors that are experimental or deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Function = Callable[[Any], Any]


class Subclass(torch.Tensor):
    """A tensor that may do anything."""


class EverySecond:
    """None on every second call, so that only the repeated call shows it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor | None:
        self.calls += 1
        return None if self.calls % 2 == 0 else x


def freed(x: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(0)
    return x


def fake(x: torch.Tensor) -> torch.Tensor:
    return FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x)


# What is made of the right result -> how it is told. Reading the freed one would end the process.
WRONG: dict[str, tuple[Function, str]] = {
    "sparse": (lambda x: x.to_sparse(), "a sparse_coo Tensor"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "a sparse_csr Tensor"),
    "mkldnn": (lambda x: x.to_mkldnn(), "a mkldnn Tensor"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "a nested Tensor"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "NestedTensor"),
    "meta": (lambda x: x.to("meta"), "a Tensor on meta"),
    "fake": (fake, "FakeTensor"),
    "subclass": (lambda x: x.as_subclass(Subclass), "Subclass"),
    "freed": (freed, "a Tensor without memory of its own"),
    "zero": (lambda x: torch._efficientzerotensor(x.shape), "a Tensor without memory of its own"),
    "tuple": (lambda x: (x,), "tuple"),
    "list": (lambda x: [x], "list"),
    "number": (lambda x: 1.0, "float"),
    "class": (lambda x: torch.Tensor, "_TensorMeta"),
    "array": (lambda x: x.numpy(), "ndarray"),
    "every second": (EverySecond(), "NoneType"),
}
WRONG_DTYPES: dict[str, tuple[Function, str]] = {
    "complex": (lambda x: x.to(torch.complex64), "complex64"),
    "conjugate": (lambda x: x.to(torch.complex64).conj(), "complex64"),
    "boolean": (lambda x: x > 0, "bool"),
    "integer": (lambda x: x.to(torch.int64), "int64"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "qint8"),
}
WRONG_ARRAYS: dict[str, tuple[Function, str]] = {
    "masked": (lambda x: np.ma.masked_array(x, mask=np.ones(x.shape, bool)), "it returned MaskedArray, expected nd"),
    "matrix": (lambda x: x.view(np.matrix), "it returned matrix, expected ndarray"),
    "tensor": (torch.from_numpy, "it returned Tensor, expected ndarray"),
    "objects": (lambda x: x.astype(object), "it returned object for float32 inputs"),
    "texts": (lambda x: x.astype(str), "it returned <U32 for float32 inputs"),
    "swapped bytes": (lambda x: x.astype(">f4"), "it returned >f4 for float32 inputs"),
    "fields": (lambda x: x.view([("a", "f4")]), "it returned [('a', '<f4')] for float32 inputs"),
}
# Plain numbers, however they are stored.
RIGHT: dict[str, Function] = {
    "gradient": lambda x: x.requires_grad_(),
    "parameter": torch.nn.Parameter,
    "negative view": lambda x: torch._neg_view(-x),
    "columns first": lambda x: x.mT.contiguous().mT,
}


def checked(change: Function, arrays: str = "torch") -> str | None:
    """What is wrong about a right result, changed; None if nothing is."""

    def function(x: Any) -> Any:
        if arrays == "torch":
            return change(activate("gelu", x))
        return change(reference.gelu(x.astype(np.float64)).astype(x.dtype))

    try:
        check(function, "gelu", dtypes=["float32"], examples=2, quick=True, plain=True, tail=False, arrays=arrays)
    except Failure as failure:
        assert "\n" not in failure.reason
        return failure.reason
    return None


@pytest.mark.parametrize("name", WRONG)
def test_anything_but_a_plain_tensor_is_told_in_one_line(name: str) -> None:
    """Seen red: NotImplementedError for meta, RuntimeError for sparse, a segmentation fault for freed memory."""
    change, told = WRONG[name]
    reason = checked(change)
    assert reason is not None and reason.startswith(f"it returned {told}, expected Tensor")


@pytest.mark.parametrize("name", WRONG_DTYPES)
def test_another_dtype_is_told(name: str) -> None:
    change, told = WRONG_DTYPES[name]
    assert checked(change) == f"it returned {told} for float32 inputs"


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_anything_but_a_plain_array_is_told_in_one_line(name: str) -> None:
    """Seen red: a masked array, whose mask was ignored."""
    change, told = WRONG_ARRAYS[name]
    assert (checked(change, "numpy") or "").startswith(told)


@pytest.mark.parametrize("name", RIGHT)
def test_plain_numbers_are_judged_however_they_are_stored(name: str) -> None:
    assert checked(RIGHT[name]) is None
