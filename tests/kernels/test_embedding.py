"""Embeddings: the right rows for every id dtype, memory accesses, and ids out of range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st

import ernie_m.reference as reference
from ernie_m.kernels import embedding as kernel
from ernie_m.kernels.checking.check import check
from ernie_m.kernels.runtime.dispatch import INTERPRETED

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"


def drawn(E: int = 24, V: int = 30, P: int = 12, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """word, position, gamma, beta, all random."""
    generator = torch.Generator().manual_seed(E)
    return [torch.randn(s, generator=generator).to(DEVICE, dtype) for s in ((V, E), (P, E), (E,), (E,))]


def ids(*shape: int, end: int = 10, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.randint(0, end, shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.all), "bfloat16"])
def test_embed_equals_its_twin(dtype: str) -> None:
    """On random inputs, within the derived bounds. Seen red: the offset of 2 dropped."""
    check(kernel.embed, op="embed", dtypes=[dtype], examples=25)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(1,), (7,), (2, 5), (0,), (3, 0)]),
    E=st.sampled_from([1, 2, 24, 129, 768, 1500]),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    id_dtype=st.sampled_from([torch.int32, torch.int64]),
)
def test_embed_equals_the_reference(shape: tuple[int, ...], E: int, dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    """Seen red: the offset of 2 dropped, ids and positions swapped, gamma or beta not read."""
    tables, i, p = drawn(E, dtype=dtype), ids(*shape, dtype=id_dtype), ids(*shape, end=9, dtype=id_dtype)
    y = kernel.embed(i, p, *tables, 1e-5)
    arrays = (x.double().cpu().numpy() for x in tables)
    exact = reference.embed(i.cpu().numpy(), p.cpu().numpy(), *arrays, 1e-5)
    assert y.dtype == dtype
    assert y.shape == exact.shape
    u = torch.finfo(dtype).eps / 2
    # Adding and normalising in float32 (float64) costs more where the sum's mean is large compared with its spread.
    wide = 2**-53 if dtype == torch.float64 else 2**-24
    limit = u * np.abs(exact) + 64 * wide * (1 + np.abs(exact)).max(initial=0.0) * max(1, E) ** 0.5
    assert (np.abs(y.double().cpu().numpy() - exact) <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("E", [1, 24, 100])
def test_embed_reads_and_writes_only_its_own_memory(dtype: torch.dtype, E: int) -> None:
    with guarded() as guards:
        tables = [guards.hold(x) for x in drawn(E, dtype=dtype)]
        edges = torch.tensor([0, 29, 3], device=DEVICE), torch.tensor([9, 0, 4], device=DEVICE)
        y = kernel.embed(*(guards.hold(x) for x in edges), *tables, 1e-5)
        assert not y.isnan().any()


OUTSIDE = (-1, -3, 30, 2**31 - 1, 2**40, 2**63 - 1, -(2**63))


def test_ids_out_of_range_raise_if_validated() -> None:
    tables = drawn()
    good = torch.tensor([0, 1, 2], device=DEVICE)
    for bad in OUTSIDE:
        wrong = torch.tensor([0, bad, 2], device=DEVICE)
        with pytest.raises(ValueError, match=rf"input_ids: expected values in \[0, 30\) .* got {bad} at \[1\]"):
            kernel.embed(wrong, good, *tables, 1e-5, validate=True)
        with pytest.raises(ValueError, match=rf"position_ids: expected values in \[0, 10\) .* got {bad} at \[1\]"):
            kernel.embed(good, wrong, *tables, 1e-5, validate=True)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_rows_of_ids_out_of_range_are_nan_where_nobody_checks(form: str, dtype: torch.dtype) -> None:
    """And no other row changes. Seen red: the clamped row; with the clamp dropped, a segmentation fault (2**40)."""
    tables = drawn(dtype=dtype)
    function = kernel._embed if form == "kernel" else kernel.plain_embed
    good = torch.tensor([0, 1, 9], device=DEVICE)
    right = function(good, good, *tables, 1e-5)
    assert not right.isnan().any()
    for bad in (*OUTSIDE, 10, 11):
        wrong = torch.tensor([0, bad, 9], device=DEVICE)
        # 10 and 11 are words, but there are only ten positions.
        for i, p in ((good, wrong), (wrong, good)) if bad not in (10, 11) else ((good, wrong),):
            y = function(i, p, *tables, 1e-5)
            assert y[1].isnan().all()
            assert torch.equal(y[[0, 2]], right[[0, 2]])
    narrow = torch.tensor([0, 2**31 - 1, -(2**31)], dtype=torch.int32, device=DEVICE)
    assert function(narrow, good.int(), *tables, 1e-5).isnan().all(dim=1).tolist() == [False, True, True]


def test_rows_of_ids_out_of_range_give_the_tables_no_gradient() -> None:
    """The gradients are those of the other rows alone. Seen red: nan added to the row."""
    tables = [x.requires_grad_() for x in drawn(5, 4, 5, torch.float64)]
    found = []
    for i, p in (([1, 4, 2], [0, 1, 2]), ([1, 2], [0, 2])):
        y = kernel.embed_unchecked(torch.tensor(i), torch.tensor(p), *(x.cpu() for x in tables), 1e-5)
        rows = y[[0, -1]]
        found.append(torch.autograd.grad((rows * torch.arange(10.0).view(2, 5)).sum(), tables))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    y = kernel.embed_unchecked(torch.tensor([1, 4]), torch.tensor([0, 3]), *(x.cpu() for x in tables), 1e-5)
    # Even if the loss is nan, what comes through the wrong row is not.
    gradients = torch.autograd.grad(y[1].sum(), tables)
    assert not any(x.any() for x in gradients)


def test_compiled_embed_marks_ids_out_of_range() -> None:
    """In a graph, nothing is validated."""
    torch._dynamo.reset()
    tables = drawn(dtype=torch.float64)
    compiled = torch.compile(kernel.embed, fullgraph=True, backend="aot_eager")
    y = compiled(torch.tensor([1, 30], device=DEVICE), torch.tensor([1, 1], device=DEVICE), *tables, 1e-5)
    assert y.isnan().all(dim=1).tolist() == [False, True]


def test_gradients_flow_through_the_plain_form() -> None:
    tables = [x.requires_grad_() for x in drawn(5, 4, 5, torch.float64)]
    i, p = ids(3, end=4), ids(3, end=3)
    assert torch.autograd.gradcheck(lambda *a: kernel.embed(i, p, *a, 1e-5), tables)


def test_embed_error_messages() -> None:
    (word, position, gamma, beta), i = drawn(), ids(3)
    for error, message, arguments in (
        (
            TypeError,
            "input_ids: expected torch.int32 or torch.int64, got torch.float32",
            (i.float(), i, word, position, gamma, beta),
        ),
        (ValueError, r"position_ids: expected shape .* \(3,\), got \(2,\)", (i, i[:2], word, position, gamma, beta)),
        (
            ValueError,
            r"position: expected shape \(P, E\) = \(any, 24\), got \(12, 23\)",
            (i, i, word, position[:, :23], gamma, beta),
        ),
        (ValueError, r"beta: expected shape \(E,\) = \(24,\), got \(23,\)", (i, i, word, position, gamma, beta[:23])),
        (
            TypeError,
            "gamma: expected torch.float32 like word, got torch.float64",
            (i, i, word, position, gamma.double(), beta),
        ),
        (
            ValueError,
            "word, position: expected at least 1 and 3 rows, got 30, 2",
            (i, i, word, position[:2], gamma, beta),
        ),
        (
            ValueError,
            "input_ids: expected a tensor on .* like word, got one on meta",
            (i.to("meta"), i, word, position, gamma, beta),
        ),
    ):
        with pytest.raises(error, match=message):
            kernel.embed(*arguments, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(kernel._embed, (ids(3), ids(3), *drawn(dtype=dtype), 1e-5))


@pytest.mark.parametrize("form", ["kernel", "plain"])
def test_opcheck_of_strided_arguments(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: the plain form's result has other strides than the fake's."""
    if form == "plain":
        monkeypatch.setattr(kernel, "runs_triton", lambda x: False)
    torch.library.opcheck(
        kernel._embed, (ids(3), ids(3), *(x.t().contiguous().t() if x.dim() == 2 else x for x in drawn()), 1e-5)
    )
