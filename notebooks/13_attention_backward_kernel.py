# %% [markdown]
# # 13 · The backward pass of attention, as a kernel
#
# **Question.** How does a kernel compute the gradients of attention without the probabilities, and get the same bits
# every time?
#
# Notebook 06 computed attention tile by tile and discarded each tile of scores. The gradients need the probabilities
# again. Here we recompute them, build two small kernels for one head, and compare them with the reference. Then we read
# the project's kernels.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# published for Linux: use WSL on Windows, a container on a Mac.

# %%
import os

# Triton reads this when it is imported. Kernels then run in its interpreter, on the CPU, one program at a time.
os.environ["TRITON_INTERPRET"] = "1"

import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import triton
import triton.language as tl
from shuffling import in_random_order

from ernie_m import kernels, reference
from ernie_m.kernels import attention_backward
from ernie_m.kernels.attention_backward import load_rows, store_rows
from ernie_m.kernels.runtime import interpreter
from ernie_m.reference.attention import attention_vjp

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## What to keep from the forward pass?
#
# Write s = q kᵀ / √D for the scores, P for the probabilities, O = P v for the context, and dO for the gradient that
# arrives from above. The backward pass needs P. We could store it in the forward pass, or store the log-sum-exp of each
# row, from which $P_{ij} = e^{s_{ij} - \text{lse}_i}$ can be computed again (notebook 06).
#
# **Prediction.** Take a batch of 64 sequences of 512 tokens, and a model with 12 layers and 12 heads. How many
# gigabytes are the probabilities of all layers in bfloat16? How many megabytes are the log-sum-exps in float32?

# %%
layers, B, H, S = 12, 64, 12, 512
kept_probs = layers * B * H * S * S * 2
kept_lse = layers * B * H * S * 4
print(f"probabilities: {kept_probs / 1e9:.1f} GB;  log-sum-exps: {kept_lse / 1e6:.0f} MB")

# %% [markdown]
# The ratio is S / 2 = 256. The price for the small one is another product q kᵀ and another exponential.

# %%
assert kept_probs == 256 * kept_lse

# %% [markdown]
# ## Where δ comes from
#
# The context is O = P v. Its two gradients are products: $dv = P^\top dO$, and $dP = dO\, v^\top$. Next comes the
# softmax. Its gradient, for one row, is
#
# $$ds_{ij} = P_{ij}\,(dP_{ij} - \delta_i), \qquad \delta_i = \sum_j P_{ij}\, dP_{ij} .$$
#
# This δ is inconvenient: it is a sum over **all** keys, and we need it before the first tile. But put in what dP is:
#
# $$\delta_i = \sum_j P_{ij} \sum_d dO_{id}\, v_{jd} = \sum_d dO_{id} \sum_j P_{ij}\, v_{jd}
#   = \sum_d dO_{id}\, O_{id} .$$
#
# The last form needs neither keys nor probabilities: it is a row sum of dO ∘ O. A query's δ costs D multiplications,
# and no walk over the keys.
#
# **Prediction.** A number added to all scores of a row does not change its softmax. What does this say about the sum
# of a row of dS? What is that sum if we forget δ?

# %%
rng = np.random.default_rng(0)
S, D = 75, 64
q, k, v, d_context = rng.standard_normal((4, S, D))
context, probs = reference.attention(q, k, v)
d_probs = d_context @ v.T
delta = (d_context * context).sum(1)
d_scores = probs * (d_probs - delta[:, None])
without = probs * d_probs
print("the two forms of δ agree:", np.abs((probs * d_probs).sum(1) - delta).max() < 1e-12)
print("row sums of dS are 0 to rounding:", np.abs(d_scores.sum(1)).max() < 1e-12)
print(f"typical row sum without δ: {np.sqrt((without.sum(1) ** 2).mean()):.2f}")

# %% [markdown]
# A row of dS sums to 0. Without δ the row sum is δ itself. Notice that it is not small: leaving δ out is a fault that
# any comparison of numbers finds.

# %%
assert np.abs((probs * d_probs).sum(1) - delta).max() < 1e-12
assert np.abs(d_scores.sum(1)).max() < 1e-12 and np.abs(without.sum(1) - delta).max() < 1e-12

# %% [markdown]
# ## Who adds up what?
#
# Two more products, and all gradients are there: $dq = dS\, k / \sqrt{D}$ and $dk = dS^\top q / \sqrt{D}$. For a single
# query i or key j:
#
# $$dq_i = \tfrac{1}{\sqrt D} \sum_j dS_{ij}\, k_j, \qquad dk_j = \tfrac{1}{\sqrt D} \sum_i dS_{ij}\, q_i,
#   \qquad dv_j = \sum_i P_{ij}\, dO_i .$$
#
# dq is a sum along a row of the scores; dk and dv are sums along a column.
#
# **Prediction.** A program owns a block of keys and walks over all queries. Which of the three gradients can it finish
# alone? Which one needs something from every other program?

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.5, 3), dpi=80, layout="constrained")
for axis, corner, size, title in (
    (axes[0], (31.5, -0.5), (32, S), "owns keys: dk, dv"),
    (axes[1], (-0.5, 31.5), (S, 32), "owns queries: dq"),
):
    image = axis.imshow(d_scores, cmap="RdBu", vmin=-0.1, vmax=0.1)
    axis.add_patch(plt.Rectangle(corner, *size, fill=False, color="black", linewidth=2))
    axis.set(xlabel="key", ylabel="query", title=title)
figure.colorbar(image, ax=axes, label="dS", shrink=0.8)
plt.show()

# %% [markdown]
# On the left, the columns of a block of keys contain all that its dk and dv need. But they contain only a part of each
# row, and so a part of each dq. There are two ways out:
#
# * **Add across programs.** Every program adds its part of dq to memory with an atomic addition. That is five products
#   per tile.
# * **Walk twice.** A second kernel owns blocks of queries and walks over keys. It computes scores and dP again: three
#   products there and four in the first kernel, together seven.
#
# The project walks twice. We write both ways, and see what the two extra products buy.
#
# ## Two kernels for one head
#
# Both read q, k, v and dO as (S, D) matrices, and lse and δ with one number per query. `load_rows` and `store_rows` are
# the project's: rows outside a mask are read as 0, and are not written.
#
# Each program first loads what it owns. Then it walks. `ATOMIC` adds the dq of the tile to memory.


# %%
@triton.jit
def my_keys_kernel(
    q, k, v, d_context, lse, delta, dq, dk, dv, S, scale,
    D: tl.constexpr, BLOCK: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_n = o_n < S
    b_k, b_v = load_rows(k, o_n, m_n, D, D), load_rows(v, o_n, m_n, D, D)
    b_dk, b_dv = tl.zeros((BLOCK, D), tl.float32), tl.zeros((BLOCK, D), tl.float32)
    for first in range(0, S, BLOCK):
        o_m = first + tl.arange(0, BLOCK)
        m_m = o_m < S
        b_q, b_dy = load_rows(q, o_m, m_m, D, D), load_rows(d_context, o_m, m_m, D, D)
        b_lse = tl.load(lse + o_m, mask=m_m, other=float("inf"))
        b_delta = tl.load(delta + o_m, mask=m_m, other=0.0)
        probs = tl.exp(tl.dot(b_q, tl.trans(b_k)) * scale - b_lse[:, None])
        d_scores = probs * (tl.dot(b_dy, tl.trans(b_v)) - b_delta[:, None])
        b_dv += tl.dot(tl.trans(probs), b_dy)
        b_dk += tl.dot(tl.trans(d_scores), b_q)
        if ATOMIC:
            o_md = o_m[:, None] * D + tl.arange(0, D)[None, :]
            tl.atomic_add(dq + o_md, tl.dot(d_scores, b_k) * scale, mask=m_m[:, None])
    store_rows(dk, b_dk * scale, o_n, m_n, D, D)
    store_rows(dv, b_dv, o_n, m_n, D, D)


@triton.jit
def my_queries_kernel(
    q, k, v, d_context, lse, delta, dq, S, scale, D: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr
):
    o_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_m = o_m < S
    b_q, b_dy = load_rows(q, o_m, m_m, D, D), load_rows(d_context, o_m, m_m, D, D)
    b_lse = tl.load(lse + o_m, mask=m_m, other=0.0)
    b_delta = tl.load(delta + o_m, mask=m_m, other=0.0)
    b_dq = tl.zeros((BLOCK, D), tl.float32)
    for first in range(0, S, BLOCK):
        o_n = first + tl.arange(0, BLOCK)
        m_n = o_n < S
        b_k, b_v = load_rows(k, o_n, m_n, D, D), load_rows(v, o_n, m_n, D, D)
        scores = tl.dot(b_q, tl.trans(b_k)) * scale
        if MASK:
            scores = tl.where(m_n[None, :], scores, float("-inf"))
        probs = tl.exp(scores - b_lse[:, None])
        d_scores = probs * (tl.dot(b_dy, tl.trans(b_v)) - b_delta[:, None])
        b_dq += tl.dot(d_scores, b_k)
    store_rows(dq, b_dq * scale, o_m, m_m, D, D)


# %% [markdown]
# The launcher computes δ, and starts one program for each block. lse comes from the project's forward kernel, and so
# does the context.

# %%
names, BLOCK = ("dq", "dk", "dv"), 32
cu_seqlens = torch.tensor([0, S], dtype=torch.int32)


def backward(d_context, qkv, atomic=False, mask=True):  # (S, D), (S, 3, D) -> (S, D) x 3
    context, lse = kernels.packed_attention(qkv[:, :, None], cu_seqlens, return_lse=True)
    arguments = (*(x.contiguous() for x in qkv.unbind(1)), d_context, lse[0], (d_context * context[:, 0]).sum(1))
    dq, dk, dv = torch.zeros_like(d_context), torch.empty_like(d_context), torch.empty_like(d_context)
    grid, sizes, scale = (triton.cdiv(S, BLOCK),), {"D": D, "BLOCK": BLOCK}, 1 / math.sqrt(D)
    my_keys_kernel[grid](*arguments, dq, dk, dv, S, scale, **sizes, ATOMIC=atomic)
    if not atomic:
        my_queries_kernel[grid](*arguments, dq, S, scale, **sizes, MASK=mask)
    return dq, dk, dv


def rms_errors(found, truth):
    pairs = zip(found, truth, strict=True)
    return [np.sqrt(np.square(np.asarray(x) - y).mean() / np.square(y).mean()) for x, y in pairs]


# %% [markdown]
# How far may a float32 kernel be from the truth? The truth is the reference in float64, on the same inputs. As a
# yardstick we take the reference itself, computed in float32.
#
# **Prediction.** By what factor are the kernels' errors larger or smaller than the yardstick's: 1/10, 1, 10?

# %%
qkv32, d32 = torch.from_numpy(np.stack([q, k, v], 1)).float(), torch.from_numpy(d_context).float()
inputs = d32.numpy(), *(x.numpy() for x in qkv32.unbind(1))
truth = attention_vjp(*(x.astype(np.float64) for x in inputs))
ours, theirs = backward(d32, qkv32), attention_vjp(*inputs)
ratios = np.divide(rms_errors(ours, truth), rms_errors(theirs, truth))
for name, ratio in zip(names, ratios, strict=True):
    print(f"{name}: error between half and twice the yardstick's: {0.5 < ratio < 2}")

# %% [markdown]
# About 1: our tiles and the recomputed probabilities cost no accuracy worth mentioning.

# %%
assert max(ratios) < 2

# %% [markdown]
# ## A mask that seems superfluous
#
# `S` is 75 and `BLOCK` is 32, so the last block of keys has 11 keys and 21 empty rows. `load_rows` reads those rows
# as 0. Without a mask, their scores are 0, and their probabilities exp(0 − lse), which is wrong. But then d_scores is
# multiplied by the key, which is 0.
#
# **Prediction.** Without the mask, is dq still right? And if all real scores are below −100?

# %%
low = qkv32.clone()
low[:, 0, 0], low[:, 1, 0] = 40.0, -40.0  # -1600 / 8 = -200 is now a part of every score
results = {}
with np.errstate(over="ignore", invalid="ignore"):  # the interpreter computes in NumPy, which would warn
    for label, x in (("ordinary", qkv32), ("near -200", low)):
        masked, unmasked = backward(d32, x)[0], backward(d32, x, mask=False)[0]
        results[label] = torch.equal(masked, unmasked), bool(masked.isnan().any()), bool(unmasked.isnan().any())
    atomic_nan = bool(backward(d32, low, atomic=True)[0].isnan().any())
for label, (equal, nan, nan_unmasked) in results.items():
    print(f"scores {label:9}  equal: {equal!s:5}  nan with the mask: {nan}, without: {nan_unmasked}")

# %% [markdown]
# With ordinary scores the mask changes nothing at all. With low scores lse is about −200. Then exp(0 + 200) is infinite
# in float32, and infinity times 0 is nan. No test on ordinary random numbers finds this fault.
#
# For dk and dv, the keys kernel needs no such mask: rows past the end of the queries read lse as infinity, so their
# probability is exp(−inf) = 0; and rows past the end of the keys are not stored. The dq of `ATOMIC` is a sum over keys,
# and has the fault too.

# %%
assert results == {"ordinary": (True, False, False), "near -200": (False, False, True)} and atomic_nan

# %% [markdown]
# ## The same bits?
#
# Addition in floating point is not associative: (a + b) + c and a + (b + c) may round differently. Inside a program the
# order is fixed by its loop. Between programs it is not: a GPU runs many at once, and which of them adds first differs
# from run to run.
#
# The interpreter runs programs in the order of their ids. `in_random_order` ([shuffling.py](shuffling.py)) calls a
# function with that order shuffled: a GPU promises no order either.
#
# **Prediction.** We call both versions twice in the usual order, and then in three random orders. For which of dq, dk,
# dv, and for which version, do bits differ?

# %%
def same_bits(function, *arguments):
    """For each result: is it the same in two ordinary runs, and in three random orders?"""
    first, again = function(*arguments), function(*arguments)
    shuffled = [in_random_order(seed, function, *arguments) for seed in range(3)]
    repeated = [torch.equal(x, y) for x, y in zip(first, again, strict=True)]
    return repeated, [all(torch.equal(x, run[i]) for run in shuffled) for i, x in enumerate(first)]


found = {label: same_bits(backward, d32, qkv32, atomic) for label, atomic in (("atomic", True), ("two walks", False))}
print("             repeated               random orders")
for label, rows in found.items():
    print(f"{label:11}", *(f"{name} {same!s:5}" for row in rows for name, same in zip(names, row, strict=True)))
atomic_errors = rms_errors(backward(d32, qkv32, True), truth)
print("the atomic version is as accurate:", max(np.divide(atomic_errors, rms_errors(theirs, truth))) < 2)

# %% [markdown]
# Only the dq of the atomic version changes. It is not wrong: its error is below twice the yardstick's too. But two
# training runs with the same seed would drift apart, and a change in a result could no longer be traced to a change in
# the code. The two extra products buy this: each number is summed up by one program, in a fixed order.
#
# Note the first half of the table. Repeating a call in the interpreter shows nothing, because its order never changes.
# A test of repeatability has to change the order itself.

# %%
assert found["atomic"] == ([True] * 3, [False, True, True])
assert found["two walks"] == ([True] * 3, [True] * 3)
assert max(np.divide(atomic_errors, rms_errors(theirs, truth))) < 2

# %% [markdown]
# ## The project's kernels
#
# You know these kernels already. The project's first one computes δ, in float32 whatever the inputs' dtype. It
# stores δ beside the log-sum-exps, which it multiplies by log₂ e for exp2, so that the next kernel loads both at once.

# %%
print(inspect.getsource(attention_backward.delta_kernel.fn))

# %% [markdown]
# Then the kernel for dk and dv. Compare it with `my_keys_kernel`:
#
# * Programs have a head and a sequence as well. Blocks of queries (BM) and of keys (BN) have sizes of their own.
# * Scores are transposed, (BN, BM), so that neither probs nor d_scores has to be transposed for its product.
# * exp2 instead of exp, as in notebook 06.
# * probs and d_scores are rounded to the inputs' dtype before they enter a product.
# * Keys past the end repeat the last key instead of being 0. That avoids the overflow of the section on masks.
# * `input_precision="ieee"` asks for products of full float32 numbers. By default, Triton rounds float32 to TF32 for
#   the tensor cores of an NVIDIA GPU, and keeps 11 bits of 24.
# * `DROP` computes the dropout bits of the forward pass again.

# %%
print(inspect.getsource(attention_backward.keys_kernel.fn))

# %% [markdown]
# And one step of the kernel for dq, with the mask that is not superfluous.

# %%
print(inspect.getsource(attention_backward.add_to_queries.fn))

# %% [markdown]
# Sequences of up to 64 tokens (32 in float32) fit in one block. If all of a batch do, `short_kernel` takes them. It
# holds all probabilities of a sequence at once, so five products are enough. It needs no stored log-sum-exps, and takes
# δ as the row sum of P ∘ dP.
#
# **Prediction.** Our batch now has three sequences, of 5, 32 and 38 tokens, in float32. The last does not fit, so the
# kernels above take all three. Do they give the same bits in every order? Are they as accurate as the yardstick?

# %%
ends = torch.tensor([0, 5, 37, 75], dtype=torch.int32)
arguments = d32[:, None], qkv32[:, :, None], ends
truth = reference.packed_attention_vjp(*(x.double().numpy() for x in arguments[:2]), ends.numpy())
theirs = reference.packed_attention_vjp(*(x.numpy() for x in arguments))
gradient = kernels.packed_attention_vjp(*arguments)
(ratio,) = np.divide(rms_errors([gradient], [truth]), rms_errors([theirs], [truth]))
repeated, shuffled = same_bits(lambda *x: [kernels.packed_attention_vjp(*x)], *arguments)
print(f"error at most twice the yardstick's: {ratio < 2};  same bits in random orders: {shuffled[0]}")

# %%
assert ratio < 2 and repeated == shuffled == [True]

# %% [markdown]
# ## What to try next
#
# * Leave δ out of `my_keys_kernel`. Which of dk and dv changes, which does not, and why?
# * In `low`, change −40 to 40, so that the scores are near +200. Is the mask needed now?
# * Walk over the keys backwards in `my_queries_kernel`. Are the bits the same as before? Is that a fault?
# * Compute δ in the notebook as the row sum of P ∘ dP, in a third loop over keys. What does it cost?
# * Next: `14_layer_norm_backward`, where one gradient is a sum over all tokens of the batch.
