"""Every backward kernel: errors of its gradients, their bits, its memory, and how autograd and the compiler use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import planted_gradients
import pytest
import torch
from guards import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vjp_checks import assert_same_bits, assert_within, bits, worst

from ernie_m.kernels import dropped_layer_norm, embedding, gelu, layer_norm, partials
from ernie_m.kernels.checking import gradient_bounds
from ernie_m.kernels.dropout import seed_tensor
from ernie_m.kernels.runtime import dispatch
from ernie_m.kernels.runtime.dispatch import INTERPRETED
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid

# Slow in the interpreter; `verify`, in `make test`, checks the same kernels with fewer inputs.
pytestmark = pytest.mark.all

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if INTERPRETED else "cuda"
EPS = 1e-5
COLUMNS = (1, 2, 7, 63, 65, 127, 129, 768, 1025)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 31 * sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def with_zeros(gamma: Tensor) -> Tensor:
    """A third of γ is 0, so that what divides by it fails."""
    return gamma.masked_fill(torch.arange(gamma.numel(), device=gamma.device) % 3 == 1, 0.0)


def gelu_inputs(rows: int, E: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    return [*(normal(rows, E, dtype=dtype, seed=seed + i) * (1 + i) for i in range(2)), normal(E, dtype=dtype)]


def norm_inputs(rows: int, E: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    dy, x, residual = (normal(rows, E, dtype=dtype, seed=seed + i) for i in range(3))
    gamma = with_zeros(normal(E, dtype=dtype, seed=seed + 5))
    return [dy, x + 2, normal(E, dtype=dtype, seed=seed + 4), residual, gamma, EPS]


def dropped_inputs(rows: int, E: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """A seed of 64 bits; tokens in no order."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2**20, (rows,), generator=generator).to(DEVICE)
    return [*norm_inputs(rows, E, dtype, seed), 0.3, 2**64 - 59, tokens]


def embed_inputs(rows: int, E: int, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    ids, positions = (torch.randint(end, (rows,), generator=generator).to(DEVICE) for end in (5, 9))
    tables = [normal(n, E, dtype=dtype, seed=seed + n) for n in (7, 11)]
    return [normal(rows, E, dtype=dtype, seed=seed), ids, positions, *tables, with_zeros(normal(E, dtype=dtype)), EPS]


@dataclass(frozen=True)
class Op:
    """An operation: how its inputs are drawn, its gradients' function, and the custom operations of both passes."""

    inputs: Callable[..., list[Any]]
    vjp: Callable[..., tuple[Tensor, ...]]
    bound: Callable[..., Any]
    forward: Callable[..., Tensor]
    operation: Any
    backward: Any
    # Which of the inputs of `vjp` the results belong to; the last of all is beta's.
    order: tuple[int, ...]

    def arguments(self, inputs: list[Any]) -> list[Any]:
        """The forward's: those after dy, with a beta before ε, and with the seed as a tensor."""
        rest = [seed_tensor(x, DEVICE) if isinstance(x, int) else x for x in inputs[1:]]
        if EPS in (x for x in rest if isinstance(x, float)):
            rest.insert(self.order[-1], torch.ones_like(rest[self.order[-1] - 1]))
        return rest


OPS = {
    "bias_gelu_vjp": Op(
        *(gelu_inputs, gelu.bias_gelu_vjp, gradient_bounds.bias_gelu_vjp, gelu.bias_gelu),
        *(gelu._bias_gelu, gelu._bias_gelu_vjp, (0, 1)),
    ),
    "add_layer_norm_vjp": Op(
        *(norm_inputs, layer_norm.add_layer_norm_vjp, gradient_bounds.add_layer_norm_vjp),
        *(layer_norm.add_layer_norm, layer_norm._add_layer_norm, layer_norm._add_layer_norm_vjp, (0, 1, 2, 3, 4)),
    ),
    "dropped_layer_norm_vjp": Op(
        *(dropped_inputs, dropped_layer_norm.dropped_layer_norm_vjp, gradient_bounds.dropped_layer_norm_vjp),
        *(dropped_layer_norm.dropped_layer_norm, dropped_layer_norm._dropped_layer_norm),
        *(dropped_layer_norm._dropped_layer_norm_vjp, (0, 1, 2, 3, 4)),
    ),
    "embed_vjp": Op(
        *(embed_inputs, embedding.embed_vjp, gradient_bounds.embed_vjp),
        *(embedding.embed, embedding._embed, embedding._embed_vjp, (2, 3, 4, 5)),
    ),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


@every_op
@settings(max_examples=25)
@given(
    rows=st.sampled_from([1, 2, 3, 9, 17, 40]),
    E=st.sampled_from(COLUMNS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_gradients_are_within_their_bounds(op: Op, rows: int, E: int, dtype: torch.dtype, seed: int) -> None:
    """Random cotangents, and a γ that is 0 in places."""
    inputs = op.inputs(rows, E, dtype, seed)
    assert_within(op.bound, inputs, op.vjp(*inputs))


@every_op
@pytest.mark.parametrize("E", [1, 100, 1025])
def test_backward_reads_and_writes_only_its_own_memory(op: Op, E: int) -> None:
    """Every result is from `torch.empty`, poisoned with nan, and inputs have guards of nan."""
    with guarded() as guards:
        inputs = [guards.hold(x) if isinstance(x, Tensor) else x for x in op.inputs(11, E, torch.float32)]
        kept = bits([x for x in inputs if isinstance(x, Tensor)])
        results = op.vjp(*inputs)
        assert bits([x for x in inputs if isinstance(x, Tensor)]) == kept
    assert_within(op.bound, inputs, results)


@every_op
def test_gradients_are_the_same_bits_always_and_in_any_order(op: Op) -> None:
    """100 calls, and ten orders of the programs of every launch."""
    inputs = op.inputs(17, 6, torch.bfloat16)
    assert_same_bits(lambda: op.vjp(*inputs))


@every_op
def test_the_number_of_partials_depends_on_the_rows_alone(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each tile of 8 rows, up to 256, on every device: nothing asks for its number of multiprocessors."""

    def asked(*arguments: Any) -> Any:
        raise AssertionError("a launch asks for the device's properties")

    monkeypatch.setattr(torch.cuda, "get_device_properties", asked)
    inputs = op.inputs(300, 5, torch.float32)
    if not INTERPRETED:
        op.vjp(*inputs)
        return
    with shuffled_grid(0) as launches:
        op.vjp(*inputs)
    assert 38 in [len(places) for places in launches]
    assert [partials.count_partials(tiles) for tiles in (1, 38, 256, 257, 10**6)] == [1, 38, 256, 256, 256]


# The loss has no rows of this kind; its faults are in checking/test_faults.py.
FAULTS = [(name, fault) for name in OPS for fault in planted_gradients.FAULTS.get(name, ())]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_planted_faults_are_refused(name: str, fault: str, dtype: torch.dtype) -> None:
    """Not by their size: each is refused in bfloat16 too."""
    op, function = OPS[name], planted_gradients.KERNELS[name]
    inputs = op.inputs(24, 65, dtype)
    # ε shows where the variance is small.
    if fault == "no eps":
        inputs[op.order[-1] + 1] = 0.3
    assert_within(op.bound, inputs, function(*inputs))
    assert max(worst(op.bound, inputs, function(*inputs, fault=fault)).values()) > 1


@every_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_thousands_of_rows_in_half_precision_are_refused(op: Op, dtype: torch.dtype) -> None:
    """4,096 rows added in the dtype; in float32, they pass."""
    name = next(name for name, other in OPS.items() if other is op)
    inputs, function = op.inputs(4096, 5, dtype), planted_gradients.KERNELS[name]
    assert_within(op.bound, inputs, function(*inputs))
    assert max(worst(op.bound, inputs, function(*inputs, fault="low sums")).values()) > 1


@pytest.mark.parametrize("name", ["add_layer_norm_vjp", "dropped_layer_norm_vjp", "embed_vjp"])
def test_statistics_in_half_precision_are_refused(name: str) -> None:
    op, function = OPS[name], planted_gradients.KERNELS[name]
    inputs = op.inputs(24, 65, torch.bfloat16)
    assert max(worst(op.bound, inputs, function(*inputs, fault="low statistics")).values()) > 1


@every_op
def test_a_partial_that_is_not_added_is_refused(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one, which holds few rows. 300 rows have 38 partial sums."""
    inputs = op.inputs(300, 6, torch.float32)
    assert_within(op.bound, inputs, op.vjp(*inputs))
    ours = (gelu.bias_gelu_backward, layer_norm.add_layer_norm_backward, embedding.embed_backward)
    for function in (*ours, dropped_layer_norm.dropped_layer_norm_backward):
        monkeypatch.setitem(function.__globals__, "sum_partials", lambda x, dtype: partials.sum_partials(x[:-1], dtype))
    assert max(worst(op.bound, inputs, op.vjp(*inputs)).values()) > 1


@every_op
def test_a_cotangent_of_ones_is_not_what_is_read(op: Op) -> None:
    """Gradients are linear in the cotangent: exactly, for a power of two."""
    inputs = op.inputs(9, 33, torch.float32)
    twice = op.vjp(2 * inputs[0], *inputs[1:])
    assert all(torch.equal(a, 2 * b) for a, b in zip(twice, op.vjp(*inputs), strict=True))
    assert not any(x.any() for x in op.vjp(0 * inputs[0], *inputs[1:]))


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_accepts_any_strides(op: Op, dtype: torch.dtype) -> None:
    inputs = op.inputs(6, 40, dtype)
    strided = [torch.stack([x, x], dim=-1)[..., 0] if isinstance(x, Tensor) else x for x in inputs]
    assert bits(op.vjp(*strided)) == bits(op.vjp(*inputs))


@every_op
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,), (2, 0)])
def test_backward_works_on_the_last_axis_of_any_shape(op: Op, shape: tuple[int, ...]) -> None:
    """And sums over no tokens are 0."""
    count = torch.Size(shape).numel()
    inputs = op.inputs(count, 8, torch.float32)
    shaped = [x.view((*shape, *x.shape[1:])) if getattr(x, "shape", (-1,))[0] == count else x for x in inputs]
    results = op.vjp(*shaped)
    assert bits(results) == bits(op.vjp(*inputs))
    assert count or not any(x.any() for x in results)
    assert results[0].shape == (shaped[0].shape if op is not OPS["embed_vjp"] else inputs[3].shape)


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(arguments: list[Any]) -> list[Any]:
    floats = [isinstance(x, Tensor) and x.is_floating_point() for x in arguments]
    return [x.clone().requires_grad_() if own else x for x, own in zip(arguments, floats, strict=True)]


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_autograd_takes_the_backward_kernel(op: Op, dtype: torch.dtype, compiled: bool, fresh: None) -> None:
    """Forward and backward, compiled in one graph too, give the bits of the public function."""
    inputs = op.inputs(9, 33, dtype)
    arguments = leaves(op.arguments(inputs))
    function = torch.compile(op.forward, fullgraph=True, backend="aot_eager") if compiled else op.forward
    function(*arguments).backward(inputs[0])
    expected = op.vjp(*inputs)
    assert bits([arguments[i].grad for i in op.order]) == bits(expected)
    # In inference, too, the forward is that of the kernel.
    with torch.no_grad():
        assert torch.equal(op.forward(*arguments), op.forward(*leaves(op.arguments(inputs))).detach())


@every_op
def test_second_derivatives_of_kernels_are_refused(op: Op) -> None:
    arguments = leaves(op.arguments(op.inputs(4, 6, torch.float32)))
    own = [arguments[i] for i in op.order]
    gradients = torch.autograd.grad(op.forward(*arguments).sin().sum(), own, create_graph=True)
    with pytest.raises(RuntimeError, match="_vjp: kernels have no second derivatives; use float64 or the transforms"):
        torch.autograd.grad(gradients[0].square().sum(), own)


@every_op
def test_second_derivatives_in_float64_and_under_transforms(op: Op) -> None:
    """The plain form has them, that of the gradients' own function included."""
    inputs = op.inputs(4, 6, torch.float64)
    arguments = leaves(op.arguments(inputs))
    assert torch.autograd.gradcheck(op.forward, arguments)
    assert torch.autograd.gradgradcheck(op.forward, arguments)
    assert torch.autograd.gradcheck(op.vjp, leaves(inputs))
    single = op.arguments(op.inputs(4, 6, torch.float32))
    place, along = op.order[0], torch.ones_like(single[op.order[0]])

    def scalar(x: Tensor) -> Tensor:
        return op.forward(*single[:place], x, *single[place + 1 :]).sin().sum()

    _, second = torch.func.jvp(torch.func.grad(scalar), (single[place],), (along,))
    assert second.shape == along.shape and bool(second.any())


@every_op
def test_the_plain_form_equals_the_reference(op: Op) -> None:
    """In float64, to the bound of float32, of which 2⁻²⁹ is what rounding to float64 may do."""
    inputs = op.inputs(9, 33, torch.float64)
    single = [x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    exact = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in single]
    from ernie_m.kernels.checking.formats import FORMATS

    expected = op.bound(FORMATS["float32"], *(x.cpu().numpy() if isinstance(x, Tensor) else x for x in exact))
    for (_, _, part), got in zip(expected.each(), op.vjp(*exact), strict=True):
        assert got.dtype == torch.float64
        assert (abs(got.cpu().numpy() - part.exact) <= 2 * 2.0**-29 * part.limit).all()


@every_op
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [False, True])
def test_opcheck(op: Op, dtype: torch.dtype, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both passes, with gradients wanted and without, and with strided arguments."""
    if plain:
        monkeypatch.setattr(dispatch, "INTERPRETED", False)
    inputs = [x.cpu() if plain and isinstance(x, Tensor) else x for x in op.inputs(3, 8, dtype)]
    arguments = op.arguments(inputs)
    torch.library.opcheck(op.operation, tuple(leaves(arguments)))
    if op in (OPS["add_layer_norm_vjp"], OPS["dropped_layer_norm_vjp"]):
        inputs = [*inputs[:5], *op.operation(*arguments)[1:], *arguments[6:]]
    strided = [x.T.contiguous().T if isinstance(x, Tensor) and x.dim() == 2 else x for x in inputs]
    for given_inputs in (inputs, strided):
        torch.library.opcheck(op.backward, tuple(given_inputs))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            partial(gelu.bias_gelu_vjp, torch.ones(2, 7)),
            ValueError,
            r"dy: expected shape .* \(2, 8\), got \(2, 7\)",
        ),
        (
            partial(gelu.bias_gelu_vjp, torch.ones(2, 8).half()),
            TypeError,
            "x: expected torch.float16 like dy, got ",
        ),
        (partial(gelu.bias_gelu_vjp, None), TypeError, "dy: expected a torch.Tensor, got NoneType"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.ones(2, 8), torch.ones(8))


def test_errors_of_the_others_name_the_argument() -> None:
    inputs = norm_inputs(2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"dy: expected shape the shape of x = \(2, 8\), got \(2, 7\)"):
        layer_norm.add_layer_norm_vjp(inputs[0][:, :7], *inputs[1:])
    inputs = dropped_inputs(2, 8, torch.float32)
    for i, wrong, message in (
        (0, inputs[0][:, :7], r"dy: expected shape the shape of x = \(2, 8\), got \(2, 7\)"),
        (6, 1.5, "p: expected a number from 0 to 1, got 1.5"),
        (8, inputs[8][:1], r"tokens: expected shape the shape of x without its last axis = \(2,\), got \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dropped_layer_norm.dropped_layer_norm_vjp(*inputs[:i], wrong, *inputs[i + 1 :])
    inputs = embed_inputs(2, 8, torch.float32)
    with pytest.raises(ValueError, match=r"dy: expected shape \(..., E\) = \(2, 8\), got \(1, 8\)"):
        embedding.embed_vjp(inputs[0][:1], *inputs[1:])
    with pytest.raises(ValueError, match=r"input_ids: expected values in \[0, 7\)"):
        embedding.embed_vjp(inputs[0], inputs[1] + 7, *inputs[2:], validate=True)
