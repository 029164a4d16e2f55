"""Dropout: in training, set each number to 0 with probability p and scale the others by 1 / (1 − p).

    bits(seed, token, column, head) = word (column mod 4) of Philox((token, ⌊column / 4⌋, head, 0), key = seed)

An element is dropped if its 32 bits, as an integer, are below p · 2³². So the elements that are dropped depend on the
seed and on their place alone: not on padding, tiles or the device. A seed is 64 bits in an int64 tensor, which stays on
its device. The gradient is dropout of the gradient, with the same bits: the backward pass runs the same kernel.

Grid: one program per tile of ROWS x COLUMNS; each call of Philox serves four columns. float32 inside, rounded once.
In plain torch (see `philox`), one byte an element is kept for the gradient.

Twin: reference/dropout.py. Source: Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.reference.dropout import PLACES_PER_LAYER

from .philox import LOW_HALF, Masked, counters, dropped_on_cpu, philox
from .runtime.arguments import check_device, check_floats, check_integers, check_shape
from .runtime.dispatch import eager_on_cpu, runs_triton, transformed
from .runtime.dtypes import TRITON_TYPES, name_of
from .runtime.launch import launch
from .runtime.optional_triton import tl, triton
from .runtime.variants import Configuration, Variant, next_power_of_2

# Elements per program.
TILE = 4096
# Calls of Philox at a time on a CPU, so that the words in use stay in the cache of each core.
PIECE = 32768


@triton.jit
def bits_of(seed, tokens, groups, head=0):  # (), (N, 1), (1, G) -> (N, 4 G) uint32
    """The bits of each token's columns, in order; `groups`: ⌊column / 4⌋."""
    w0, w1, w2, w3 = tl.philox(seed, tokens.to(tl.uint32), groups.to(tl.uint32), head, 0)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def dropout_kernel(
    x, seed, tokens, y, N, threshold, scale, E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # (N, E), (), (N,) -> (N, E)
    """One ROWS x COLUMNS tile of x · scale, or 0 where the bits are below the threshold."""
    i_block = tl.program_id(0)
    # Neighbouring programs work on neighbouring columns.
    blocks: tl.constexpr = (E + COLUMNS - 1) // COLUMNS
    o_n = (i_block // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i_e = (i_block % blocks) * COLUMNS
    o_e = i_e + tl.arange(0, COLUMNS)
    m_n = o_n < N
    m_ne = m_n[:, None] & (o_e < E)[None, :]
    o_ne = o_n[:, None] * E + o_e[None, :]
    b_tokens = tl.load(tokens + o_n, mask=m_n, other=0)
    b_bits = bits_of(tl.load(seed), b_tokens[:, None], (i_e // 4 + tl.arange(0, COLUMNS // 4))[None, :])
    b_x = tl.load(x + o_ne, mask=m_ne, other=0.0).to(tl.float32)
    b_y = tl.where(b_bits < tl.cast(threshold, tl.uint32), 0.0, b_x * scale)
    tl.store(y + o_ne, b_y.to(y.dtype.element_ty), mask=m_ne)


def configuration(E: int) -> Configuration:
    """Blocks and warps for rows of E columns. Narrow tiles: bits are computed past the end of a row too."""
    columns = min(max(next_power_of_2(E), 4), 256)
    return Configuration({"ROWS": TILE // columns, "COLUMNS": columns}, num_warps=4)


def grid(N: int, E: int, chosen: Configuration) -> tuple[int, ...]:
    """All tiles on axis x."""
    return (-(-N // chosen.blocks["ROWS"]) * -(-E // chosen.blocks["COLUMNS"]),)


def variants(target: str) -> Iterator[Variant]:
    """The kernel, of both passes, at the sizes of the base and large models."""
    for dtype, kind in TRITON_TYPES.items():
        for E in (768, 1024, 3072, 4096):
            chosen = configuration(E)
            signature = {"x": f"*{kind}", "seed": "*i64", "tokens": "*i64", "y": f"*{kind}"}
            signature |= {"N": "i32", "threshold": "i32", "scale": "fp32"}
            constants = {"E": E, **chosen.blocks}
            described = ("dropout_vjp", name_of(dtype), f"E={E}", dropout_kernel, signature)
            yield Variant(*described, constants, chosen, tile=TILE)


@torch.library.custom_op("ernie_m::dropout", mutates_args=())
def _dropout(x: Tensor, p: float, seed: Tensor, tokens: Tensor) -> Tensor:
    x = x.contiguous()
    if not runs_triton(x):
        return plain_dropout(x, p, seed, tokens)
    y = torch.empty_like(x)
    if threshold_of(p) > LOW_HALF:
        return y.zero_()
    if x.numel():
        E = x.shape[-1]
        N, chosen = x.numel() // E, configuration(E)
        launch(
            dropout_kernel,
            grid(N, E, chosen),
            x,
            *(x, seed, tokens.contiguous(), y, N, threshold_of(p), 1.0 / (1.0 - p)),
            E=E,
            **chosen.blocks,
            **chosen.options,
        )
    return y


@_dropout.register_fake
def _(x: Tensor, p: float, seed: Tensor, tokens: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_bits(ctx: Any, inputs: tuple[Tensor, float, Tensor, Tensor], output: Tensor) -> None:
    _, ctx.p, seed, tokens = inputs
    ctx.save_for_backward(seed, tokens)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    seed, tokens = ctx.saved_tensors
    return _dropout(dy, ctx.p, seed, tokens), None, None, None


_dropout.register_autograd(_backward, setup_context=_keep_bits)


def threshold_of(p: float) -> int:
    """The number of 32-bit words, out of 2³², that drop an element."""
    return round(p * 2.0**32)


def draw_seeds(layers: int, device: Any = None) -> Tensor:  # -> (4 L + 2,) int64
    """One seed for each place where a model of `layers` layers drops, from torch's generator for the device."""
    # Two draws of 32 bits: torch's largest range would miss one integer, and overflow in a compiled graph.
    low, high = torch.randint(0, 2**32, (2, PLACES_PER_LAYER * layers + 2), device=device)
    return low | (high << 32)


def seed_tensor(seeds: Any, device: Any = None) -> Tensor:  # (...) uint64 -> (...) int64
    """The reference's seeds, integers from 0 to 2⁶⁴ - 1, as torch takes them: the same bits as int64.

    Raises ValueError for anything else.
    """
    try:
        bits = np.array(seeds, np.uint64)
        exact = np.array_equal(bits, seeds)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact:
        raise ValueError(f"seed: expected integers from 0 to 2**64 - 1, got {seeds!r:.80}")
    return torch.from_numpy(bits.view(np.int64)).to(device)


def random_bits(seed: Any, tokens: Tensor, columns: int, heads: Any = 0) -> Tensor:  # (...,) -> (..., columns) int64
    """The bits of columns 0 to `columns` - 1, for each token and head; `tokens` and `heads` broadcast to (...)."""
    tokens, heads = (torch.as_tensor(x, device=tokens.device).to(torch.int64) for x in (tokens, heads))
    return torch.stack(philox(counters(tokens, columns, heads), _seed(seed, tokens)), dim=-1).flatten(-2)[..., :columns]


def _seed(seed: Any, like: Tensor) -> Tensor:
    return seed if isinstance(seed, Tensor) else seed_tensor(seed, like.device)


def _dropped(p: float, seed: Tensor, tokens: Tensor, columns: int, H: int = 1) -> Tensor:  # (N,) -> (H, N, columns)
    """Which elements are dropped, for each token and head."""
    threshold, heads = threshold_of(p), torch.arange(H, device=tokens.device)[:, None]
    if eager_on_cpu(tokens):
        return torch.from_numpy(dropped_on_cpu(threshold, int(seed) & 2**64 - 1, tokens.numpy(), columns, H))
    words = philox(counters(tokens, columns, heads), seed)
    return torch.stack([word < threshold for word in words], dim=-1).flatten(-2)[..., :columns]


def _masked(x: Tensor, dropped: Tensor, p: float) -> Tensor:  # (...) x 2 -> (...)
    """`x` divided by 1 − p, or 0 where it is dropped."""
    if threshold_of(p) > LOW_HALF:
        return torch.zeros_like(x)
    if eager_on_cpu(x):
        y: Tensor = Masked.apply(x, dropped, p)
        return y
    return (x / (1.0 - p)).masked_fill(dropped, 0.0)


def plain_dropout(x: Tensor, p: float, seed: Tensor, tokens: Tensor) -> Tensor:  # (..., E), (), (...) -> (..., E)
    """`dropout` in plain torch, differentiable."""
    return _masked(x, _dropped(p, seed, tokens.flatten(), x.shape[-1]).view(x.shape), p)


def dropout_unchecked(x: Tensor, p: float, seed: Tensor, tokens: Tensor) -> Tensor:  # (..., E), (), (...) -> (..., E)
    """`dropout` for callers that have checked the arguments."""
    return (_dropout if runs_triton(x) and not transformed() else plain_dropout)(x, p, seed, tokens)


def dropout(x: Tensor, p: float, seed: Any, tokens: Tensor | None = None) -> Tensor:  # (..., E), (...) -> (..., E)
    """Drop elements of `x` with probability `p`, from 0 to 1; without a seed, return `x`.

    seed: an int64 tensor (), which is not read on the host, or an integer from 0 to 2⁶⁴ - 1. `tokens` holds the index
    of each token among the real tokens of the batch; by default they are counted in order. Raises TypeError or
    ValueError, naming the argument.
    """
    check_floats(x=x)
    if x.dim() < 1:
        raise ValueError(f"x: expected shape (..., E), got {tuple(x.shape)}")
    bits = check_bits(x, p, seed, tokens)
    return x if bits is None else dropout_unchecked(x, p, *bits)


def check_bits(x: Tensor, p: float, seed: Any, tokens: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The seed and the tokens' indices as tensors; None where nothing is dropped.

    Raises TypeError or ValueError, naming the argument.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p: expected a number from 0 to 1, got {p}")
    if seed is None or p == 0.0:
        return None
    seed = _seed(seed, x)
    check_integers("seed", seed, (torch.int64,))
    check_shape("seed", seed, (), "()")
    check_device("seed", seed, "x", x)
    if tokens is None:
        tokens = torch.arange(x.shape[:-1].numel(), device=x.device).view(x.shape[:-1])
    check_integers("tokens", tokens)
    check_device("tokens", tokens, "x", x)
    check_shape("tokens", tokens, tuple(x.shape[:-1]), "the shape of x without its last axis")
    return seed, tokens.to(torch.int64)


def dropout_vjp(dy: Tensor, p: float, seed: Any, tokens: Tensor | None = None) -> Tensor:  # (..., E), (...) -> (..., E)
    """The gradient of x, if `dy` is that of `dropout(x, p, seed, tokens)`: dropout of `dy`, by the same kernel."""
    return dropout(dy, p, seed, tokens)


def drop_probabilities(
    probs: Tensor, p: float, seed: Tensor, tokens: Tensor, positions: Tensor | None = None
) -> Tensor:  # (B, H, S, S), (), (B, S) x 2 -> (B, H, S, S)
    """Dropout of attention probabilities in plain torch: a query's token, and a key's position in its sequence.

    `positions`: those of the keys; by default their columns.
    """
    B, H, S, _ = probs.shape
    dropped = _dropped(p, seed, tokens.flatten(), S, H).unflatten(1, (B, S)).transpose(0, 1)
    if positions is not None:
        dropped = dropped.gather(-1, positions[:, None, None, :].expand(B, H, S, S))
    return _masked(probs, dropped, p)
