"""A typical wrong answer to each exercise in `notebooks/exercises`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ernie_m.kernels.runtime.optional_triton import tl, triton
from ernie_m.reference.layer_norm import layer_norm_vjp
from ernie_m.reference.softmax import softmax_vjp_of

Array = np.ndarray[Any, np.dtype[Any]]


def softmax_without_maximum(scores: Array) -> Array:
    exps = np.exp(scores)
    return exps / exps.sum(axis=-1, keepdims=True)


def softmax_from_its_logarithm(scores: Array) -> Array:
    largest = scores.max(axis=-1, keepdims=True)
    return np.exp(scores - (largest + np.log(np.exp(scores - largest).sum(axis=-1, keepdims=True))))


def layer_norm_unbiased(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).sum(axis=-1, keepdims=True) / np.float32(x.shape[-1] - 1)
    return centred / np.sqrt(variance + eps) * gamma + beta


def layer_norm_in_one_pass(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = np.square(x).mean(axis=-1, keepdims=True) - np.square(mean)
    return (x - mean) / np.sqrt(variance + eps) * gamma + beta


def layer_norm_with_the_sum_of_its_parameters(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps) * (gamma + beta)


def mask_one_too_long(lengths: Array, S: int) -> Array:
    return np.arange(S) <= lengths[:, None]


def unpad_by_position(x: Array, mask: Array) -> Array:
    return x.swapaxes(0, 1)[mask.T]


def pad_without_moving_on(packed: Array, mask: Array) -> Array:
    padded = np.zeros((*mask.shape, packed.shape[1]), packed.dtype)
    for row, kept in zip(padded, mask, strict=True):
        row[kept] = packed[: np.count_nonzero(kept)]
    return padded


def pad_with_ones(packed: Array, mask: Array) -> Array:
    padded = np.ones((*mask.shape, packed.shape[1]), packed.dtype)
    padded[mask] = packed
    return padded


def pad_with_empty(packed: Array, mask: Array) -> Array:
    padded = np.empty((*mask.shape, packed.shape[1]), packed.dtype)
    padded[mask] = packed
    return padded


def softmax_backward_diagonal(dy: Array, probs: Array) -> Array:
    return dy * probs * (1 - probs)


def layer_norm_backward_constants(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    s = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)
    return dy * gamma / s, (dy * centred / s).sum(axis=0), dy.sum(axis=0)


def layer_norm_backward_of_x(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Array, Array, Array]:
    dx, _, dbeta = layer_norm_vjp(dy, x, gamma, eps)
    return dx, (dy * x).sum(axis=0), dbeta


def gelu_backward_without_density(dy: Array, x: Array) -> Array:
    return dy * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2


def attention_backward_without_scale(dy: Array, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    exps = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
    probs = exps / exps.sum(axis=-1, keepdims=True)
    d_scores = softmax_vjp_of(dy @ v.T, probs)
    return d_scores @ k, d_scores.T @ q, probs.T @ dy


@triton.jit
def gelu_kernel(x, y, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + o_n, mask=o_n < n, other=0.0).to(tl.float32)
    # tanh(z) = 2 sigmoid(2z) - 1
    b_z = 0.7978845608028654 * (b_x + 0.044715 * b_x * b_x * b_x)
    tl.store(y + o_n, (b_x * tl.sigmoid(2 * b_z)).to(y.dtype.element_ty), mask=o_n < n)


def gelu_with_tanh(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), 128),)](x, y, x.numel(), BLOCK=128)
    return y


@triton.jit
def softmax_kernel(scores, probs, C, BLOCK: tl.constexpr):
    o_c = tl.arange(0, BLOCK)
    p_row = tl.program_id(0) * C
    b_scores = tl.load(scores + p_row + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    b_exps = tl.exp(b_scores - tl.max(b_scores, 0))
    tl.store(probs + p_row + o_c, (b_exps / tl.sum(b_exps, 0)).to(probs.dtype.element_ty), mask=o_c < C)


def softmax_past_the_row(scores: Tensor) -> Tensor:
    probs = torch.empty_like(scores)
    N, C = scores.shape
    softmax_kernel[(N,)](scores, probs, C, BLOCK=triton.next_power_of_2(C))
    return probs


@triton.jit
def add_layer_norm_kernel(
    x, bias, residual, gamma, beta, y, eps, E, BLOCK: tl.constexpr, BIAS: tl.constexpr, ROUND: tl.constexpr
):
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    p_row = tl.program_id(0) * E
    b_v = tl.load(x + p_row + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_v += tl.load(residual + p_row + o_e, mask=m_e, other=0.0).to(tl.float32)
    if BIAS:
        b_v += tl.load(bias + o_e, mask=m_e, other=0.0).to(tl.float32)
    if ROUND:
        b_v = b_v.to(x.dtype.element_ty).to(tl.float32)
    b_centred = tl.where(m_e, b_v - tl.sum(b_v, 0) / E, 0.0)
    b_y = b_centred / tl.sqrt(tl.sum(b_centred * b_centred, 0) / E + eps)
    b_y *= tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    b_y += tl.load(beta + o_e, mask=m_e, other=0.0).to(tl.float32)
    tl.store(y + p_row + o_e, b_y.to(y.dtype.element_ty), mask=m_e)


def add_layer_norm_without_bias(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float, **how: bool
) -> Tensor:
    N, E = x.shape
    y = torch.empty_like(x)
    how = {"BIAS": False, "ROUND": False, **how}
    add_layer_norm_kernel[(N,)](x, bias, residual, gamma, beta, y, eps, E, BLOCK=triton.next_power_of_2(E), **how)
    return y


def add_layer_norm_rounded(
    x: Tensor, bias: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> Tensor:
    return add_layer_norm_without_bias(x, bias, residual, gamma, beta, eps, BIAS=True, ROUND=True)


@triton.jit
def attention_kernel(q, k, v, y, S, D: tl.constexpr, BLOCK: tl.constexpr):
    o_r = tl.program_id(0) * 16 + tl.arange(0, 16)
    o_c, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    b_q = tl.load(q + o_r[:, None] * D + o_d[None, :], mask=(o_r < S)[:, None], other=0.0)
    o_cd, m_c = o_c[:, None] * D + o_d[None, :], (o_c < S)[:, None]
    b_k, b_v = tl.load(k + o_cd, mask=m_c, other=0.0), tl.load(v + o_cd, mask=m_c, other=0.0)
    b_scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
    b_scores = tl.where((o_c < S)[None, :], b_scores, -float("inf"))
    b_exps = tl.exp(b_scores - tl.max(b_scores, 1)[:, None])
    b_y = tl.dot(b_exps.to(b_v.dtype), b_v, input_precision="ieee") / tl.sum(b_exps, 1)[:, None]
    tl.store(y + o_r[:, None] * D + o_d[None, :], b_y.to(y.dtype.element_ty), mask=(o_r < S)[:, None])


def attention_without_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    S, D = q.shape
    y = torch.empty_like(q)
    block = max(16, triton.next_power_of_2(S))
    attention_kernel[(triton.cdiv(S, 16),)](q, k, v, y, S, D=D, BLOCK=block)
    return y
