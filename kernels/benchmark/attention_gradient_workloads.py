"""The competitors for the gradients of attention: our kernels and autograd through torch's own attention.

All start from the cotangent and the forward's inputs, as in `gradient_workloads`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ernie_m.reference.objectives import dense

from ..attention_groups_vjp import group_attention_vjp
from ..attention_vjp import packed_attention_vjp
from ..checking.drawing import pair_groups
from ..first_token import first_token_attention_vjp
from . import work as work_of
from .baselines import varlen_attention
from .measured import HEAD, OURS, Maker, Measured, case, cumulative, joined, padding
from .work import Batch, Size, Work


def attention_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """packed_attention_vjp, next to autograd through torch's own attention, packed, and on padded rows (masked if
    ragged)."""
    cu, longest = cumulative(batch.lengths, device), max(batch.lengths)
    _, mask = padding(batch, device)
    work = work_of.packed_attention_vjp(size, batch, dtype.itemsize)

    def ours(dy: Tensor, qkv: Tensor) -> Tensor:
        return packed_attention_vjp(dy, qkv, cu, longest)

    def varlen(dy: Tensor, qkv: Tensor, *_: Tensor) -> Tensor:
        x = qkv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(varlen_attention(x, cu, longest), x, dy)
        return gradient

    return _attention_case(size, batch, dtype, device, ours, cu, mask, work, {"torch varlen": varlen})


def group_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """group_attention_vjp on pairs, next to autograd through torch's own attention on padded rows under their mask."""
    (groups, mask), longest = pairs(batch, device), max(batch.lengths)
    work = work_of.group_attention_vjp(size, batch, dtype.itemsize)

    def ours(dy: Tensor, qkv: Tensor) -> Tensor:
        return group_attention_vjp(dy, qkv, groups, longest)

    return _attention_case(size, batch, dtype, device, ours, groups, mask, work)


def _attention_case(
    size: Size,
    batch: Batch,
    dtype: torch.dtype,
    device: str,
    ours: Callable[[Tensor, Tensor], Tensor],
    ends: Tensor,
    mask: Tensor | None,
    work: Work,
    others: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Measured:
    """`ours` next to `others`, and to torch's own attention on padded rows under `mask`.

    ends: the operation's last argument.
    """
    T, H, S, (valid, _) = batch.tokens, size.heads, batch.padded, padding(batch, device)

    def make() -> tuple[Tensor, ...]:
        qkv = torch.randn(T, 3, H, HEAD, device=device, dtype=dtype)
        dy = torch.randn(T, H, HEAD, device=device, dtype=dtype)
        rectangles = (torch.zeros(len(valid), S, *x.shape[1:], device=device, dtype=dtype) for x in (dy, qkv))
        padded_dy, padded = (
            rectangle.index_put((valid,), x) for rectangle, x in zip(rectangles, (dy, qkv), strict=True)
        )
        return dy, qkv, padded_dy.transpose(1, 2), padded.permute(2, 0, 3, 1, 4)

    def sdpa(dy: Tensor, qkv: Tensor, padded_dy: Tensor, padded: Tensor) -> Tensor:
        x = padded.detach().requires_grad_()
        q, k, v = x.unbind()  # by index, the backward would fill and add three tensors of the size of x
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        (gradient,) = torch.autograd.grad(context, x, padded_dy)
        return gradient

    # Not in the timed call: selecting by a mask synchronises, and ours has no such step.
    def packed(name: str, result: Tensor) -> Tensor:
        return result.permute(1, 3, 0, 2, 4)[valid] if result.dim() == 5 else result

    functions = {OURS: lambda dy, qkv, *_: ours(dy, qkv), **(others or {}), "SDPA, padded": sdpa}
    written = 3 * T * size.hidden * dtype.itemsize
    return case(make, functions, work, written, lambda dy, qkv, *_: (dy, qkv, ends), packed)


def first_token_case(size: Size, batch: Batch, dtype: torch.dtype, device: str) -> Measured:
    """first_token_attention_vjp, next to autograd through torch's own attention with one query per padded row."""
    T, H, B, S = batch.tokens, size.heads, len(batch.lengths), batch.padded
    cu, (valid, mask) = cumulative(batch.lengths, device), padding(batch, device)

    def make() -> tuple[Tensor, ...]:
        shapes = ((B,), (B,), (T, 2))
        dy, q, kv = (torch.randn(*shape, H, HEAD, device=device, dtype=dtype) for shape in shapes)
        padded = torch.zeros(B, S, 2, H, HEAD, device=device, dtype=dtype).index_put((valid,), kv)
        return dy, q, kv, padded.permute(2, 0, 3, 1, 4)

    def sdpa(dy: Tensor, q: Tensor, kv: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        x, y = q.detach().requires_grad_(), padded.detach().requires_grad_()
        k, v = y.unbind()
        context = F.scaled_dot_product_attention(x[:, :, None], k, v, attn_mask=mask).squeeze(2)
        dq, d_padded = torch.autograd.grad(context, (x, y), dy)
        return dq, d_padded

    def packed(name: str, result: tuple[Tensor, Tensor]) -> Tensor:
        dq, dkv = result
        return joined(name, (dq, dkv.permute(1, 3, 0, 2, 4)[valid] if dkv.dim() == 5 else dkv))

    work = work_of.first_token_attention_vjp(size, batch, dtype.itemsize)
    functions = {OURS: lambda dy, q, kv, _: first_token_attention_vjp(dy, q, kv, cu), "SDPA, padded": sdpa}
    written = 2 * T * size.hidden * dtype.itemsize
    return case(make, functions, work, written, lambda dy, q, kv, _: (dy, q, kv, cu), packed)


def pairs(batch: Batch, device: str) -> tuple[Tensor, Tensor]:  # -> (G, 5), (B, 1, S, S)
    """The rows of a batch as pairs of which CAMLM masks 15 %: their groups, and the mask of the padded batch.

    Padding sees itself, so that no row of scores is empty.
    """
    lengths = [work_of.pair_of(n) for n in batch.lengths]
    mask = torch.eye(batch.padded, dtype=torch.bool, device=device).repeat(len(lengths), 1, 1, 1)
    for row, pair in zip(mask[:, 0], lengths, strict=True):
        row[: sum(pair), : sum(pair)] = torch.from_numpy(dense(pair_groups([pair]), sum(pair)))
    return torch.from_numpy(pair_groups(lengths)).to(device), mask


ATTENTION_GRADIENTS: dict[str, Maker] = {
    "packed_attention_vjp": attention_case,
    "group_attention_vjp": group_case,
    "first_token_attention_vjp": first_token_case,
}
