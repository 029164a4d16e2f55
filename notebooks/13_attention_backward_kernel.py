# %% [markdown]
# # 13 · Attention, backward
#
# **Question.** The forward kernel never stores a row of scores. How does the backward pass do without them, and why
# does it take two kernels?
#
# Notebook 06 built attention forward, notebook 09 derived the gradients of softmax and of a linear map. Here you put
# them together into kernels for one head. Then you run them in an order that no loop would choose, and compare bits.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, then `jupyter lab notebooks`. Triton is published for Linux: use WSL on
# Windows, a container on a Mac.

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

from ernie_m import kernels, reference
from ernie_m.kernels import attention_backward
from ernie_m.kernels.runtime import interpreter
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## What does the backward pass need?
#
# With the scores S = q kᵀ/√D, the probabilities P = softmax(S), row by row, and the context O = P v:
#
# $$dv = P^\top dO, \qquad dP = dO\, v^\top, \qquad dS_{ij} = P_{ij}\,(dP_{ij} - \delta_i), \qquad
#   \delta_i = \sum_j P_{ij}\, dP_{ij},$$
# $$dq = dS\, k / \sqrt D, \qquad dk = dS^\top q / \sqrt D .$$
#
# Everything needs P. The forward kernel has computed it, tile by tile, and thrown it away. It kept one number for each
# query: the log-sum-exp L of its scores. From it, $P_{ij} = e^{S_{ij} - L_i}$.
#
# **Prediction.** Take a batch of 64 sequences of 512 tokens, the base model (12 heads) and bfloat16. How much memory
# would the probabilities of *one* layer take? How much do the log-sum-exps take, in float32?

# %%
B, S, H = 64, 512, 12
saved = {"probabilities": B * H * S * S * 2, "log-sum-exps": B * H * S * 4}
for name, size in saved.items():
    print(f"{name:14} {size / 1e6:6.1f} MB a layer, {12 * size / 1e6:6.0f} MB in 12 layers")

# %% [markdown]
# A factor of 256. The price is one more product, q kᵀ, in the backward pass.

# %%
assert saved["probabilities"] == 256 * saved["log-sum-exps"]

# %% [markdown]
# ## δ without P
#
# δ is a sum over a whole row of P ∘ dP. It seems that a program has to go through all keys to get it, and then once
# more to use it. But look at the sum. With $dP_{ij} = \sum_d dO_{id} v_{jd}$,
#
# $$\delta_i = \sum_j P_{ij} \sum_d dO_{id}\, v_{jd} .$$
#
# **Prediction.** Exchange the two sums. Which array, that the forward pass has written anyway, appears?

# %%
rng = np.random.default_rng(0)
S, D = 50, 16
q, k, v, d_out = rng.standard_normal((4, S, D))
out, probs = reference.attention(q, k, v)
d_probs = d_out @ v.T
slow, fast = (probs * d_probs).sum(axis=1), (d_out * out).sum(axis=1)
print("Σ_j P dP and Σ_d dO O agree within 1e-12:", np.abs(slow - fast).max() < 1e-12)

# %% [markdown]
# Σ_j P_ij v_jd is O_id, the context. So δ_i = Σ_d dO_id O_id: a sum over D = 64 numbers, not over S keys, and no
# product of matrices.

# %%
assert np.abs(slow - fast).max() < 1e-12

# %% [markdown]
# ## Two kernels, two directions
#
# dk and dv of a key are sums over queries: columns of the matrix of scores. dq of a query is a sum over keys: a row.
# One program that owns a block of keys can add up dk and dv while it walks over the queries. But it only has a part of
# each dq.
#
# The first kernel below does that. (`ATOMIC` is for later.) The second owns a block of queries, walks over the keys,
# and adds up dq. Both recompute the scores.
#
# **Prediction.** There are five products in the formulas: q kᵀ, Pᵀ dO, dO vᵀ, dS k and dSᵀ q. How many products do the
# two kernels compute together?


# %%
@triton.jit
def tile(p, o_rows, S, D: tl.constexpr):
    """Rows of a (S, D) matrix; 0 past its end."""
    return tl.load(p + o_rows[:, None] * D + tl.arange(0, D)[None, :], mask=(o_rows < S)[:, None], other=0.0)


@triton.jit
def keys_kernel(
    d_out, q, k, v, lse, delta, dq, dk, dv, S, scale, D: tl.constexpr, BLOCK: tl.constexpr, ATOMIC: tl.constexpr
):
    o_n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_k, b_v = tile(k, o_n, S, D), tile(v, o_n, S, D)
    b_dk, b_dv = tl.zeros((BLOCK, D), tl.float32), tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, S, BLOCK):
        o_m = start + tl.arange(0, BLOCK)
        b_q, b_d_out = tile(q, o_m, S, D), tile(d_out, o_m, S, D)
        b_lse = tl.load(lse + o_m, mask=o_m < S, other=float("inf"))  # exp(-inf) = 0: no such query
        b_delta = tl.load(delta + o_m, mask=o_m < S, other=0.0)
        probs = tl.exp(tl.dot(b_k, tl.trans(b_q), input_precision="ieee") * scale - b_lse[None, :])
        d_probs = tl.dot(b_v, tl.trans(b_d_out), input_precision="ieee")
        d_scores = probs * (d_probs - b_delta[None, :])
        b_dv += tl.dot(probs, b_d_out, input_precision="ieee")
        b_dk += tl.dot(d_scores, b_q, input_precision="ieee")
        if ATOMIC:
            part = tl.dot(tl.trans(d_scores), b_k, input_precision="ieee") * scale
            tl.atomic_add(dq + o_m[:, None] * D + tl.arange(0, D)[None, :], part, mask=(o_m < S)[:, None])
    p_out = o_n[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(dk + p_out, b_dk * scale, mask=(o_n < S)[:, None])
    tl.store(dv + p_out, b_dv, mask=(o_n < S)[:, None])


@triton.jit
def queries_kernel(d_out, q, k, v, lse, delta, dq, S, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    o_m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_q, b_d_out = tile(q, o_m, S, D), tile(d_out, o_m, S, D)
    b_lse = tl.load(lse + o_m, mask=o_m < S, other=0.0)
    b_delta = tl.load(delta + o_m, mask=o_m < S, other=0.0)
    b_dq = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, S, BLOCK):
        o_n = start + tl.arange(0, BLOCK)
        b_k, b_v = tile(k, o_n, S, D), tile(v, o_n, S, D)
        scores = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale
        probs = tl.exp(tl.where(o_n[None, :] < S, scores, float("-inf")) - b_lse[:, None])
        d_probs = tl.dot(b_d_out, tl.trans(b_v), input_precision="ieee")
        b_dq += tl.dot(probs * (d_probs - b_delta[:, None]), b_k, input_precision="ieee")
    tl.store(dq + o_m[:, None] * D + tl.arange(0, D)[None, :], b_dq * scale, mask=(o_m < S)[:, None])


# %% [markdown]
# Seven: the scores and dP are computed in both. Two more than necessary; we come to what that buys.
#
# Now the part that runs on the host. How accurate should the result be? As in notebook 08, we measure the noise: the
# reference computes the same in float32, and its distance from float64 is what rounding explains.

# %%
q, k, v, d_out = torch.from_numpy(rng.standard_normal((4, S, D))).float()


def backward(BLOCK=16, atomic=False):
    """dq, dk and dv of the head."""
    scale = 1 / math.sqrt(D)
    lse = (q @ k.T * scale).logsumexp(1)  # the forward kernel writes these two
    out = torch.exp(q @ k.T * scale - lse[:, None]) @ v
    delta = (d_out * out).sum(1)
    dq, (dk, dv) = torch.zeros(S, D), torch.empty(2, S, D)
    grid = (triton.cdiv(S, BLOCK),)
    keys_kernel[grid](d_out, q, k, v, lse, delta, dq, dk, dv, S, scale, D, BLOCK, atomic)
    if not atomic:
        queries_kernel[grid](d_out, q, k, v, lse, delta, dq, S, scale, D, BLOCK)
    return dq, dk, dv


given = [x.double().numpy() for x in (d_out, q, k, v)]
truth = reference.attention_vjp(*given)
plain = reference.attention_vjp(*(x.numpy() for x in (d_out, q, k, v)))
noise = [np.abs(theirs - exact).max() for theirs, exact in zip(plain, truth, strict=True)]
errors = [np.abs(ours.double().numpy() - exact).max() for ours, exact in zip(backward(), truth, strict=True)]
for name, error, limit in zip(("dq", "dk", "dv"), errors, noise, strict=True):
    print(f"{name}: error at most four times the noise: {error < 4 * limit};  noise below 1e-5: {limit < 1e-5}")

# %%
assert all(error < 4 * limit for error, limit in zip(errors, noise, strict=True)) and max(noise) < 1e-5

# %% [markdown]
# ## The tempting shortcut
#
# Five products suffice if the first kernel also adds its part of dq to memory. Several programs then add to the same
# dq, so each addition has to be **atomic**: read, add, write, without anybody in between. `tl.atomic_add` does this,
# and most implementations of attention use it. What can go wrong?
#
# A GPU runs programs in any order, and another order is another order of additions. The interpreter always begins with
# program 0. `shuffled_grid` makes it run the programs of each launch in a random order.
#
# **Prediction.** We run both versions in 10 random orders. How many different results are there, bit by bit, of the
# version with atomic additions, and of the one with two kernels? Which of the two is more accurate?

# %%
found = {}
for name, atomic in (("two kernels", False), ("atomic", True)):
    results = []
    for seed in range(10):
        with shuffled_grid(seed):
            results.append(backward(atomic=atomic)[0])
    found[name] = len({result.numpy().tobytes() for result in results})
    errors = [np.abs(result.double().numpy() - truth[0]).max() for result in results]
    print(f"{name:12} {'one result' if found[name] == 1 else 'several results'} in 10 orders;", end=" ")
    print(f"errors at most four times the noise: {max(errors) < 4 * noise[0]}")

# %% [markdown]
# Both are equally right. But with atomic additions two runs of the same training differ in the last bits, and after a
# few thousand steps in all of them. You cannot tell a change that you made from chance, nor find the step where a run
# went wrong by running it again. With two kernels, each number is written by *one* program, which adds in a fixed
# order. That is what the two extra products buy.

# %%
assert found["two kernels"] == 1 < found["atomic"]

# %% [markdown]
# The picture shows who touches which tile of scores. On the left, each colour is one program of the keys' kernel: it
# owns a column, and writes dk and dv. On the right each colour is one program of the queries' kernel, which owns a row
# and writes dq.

# %%
blocks = np.arange(-(-S // 16))
figure, axes = plt.subplots(1, 2, figsize=(6, 2.6), dpi=80, layout="constrained")
for ax, name, owner in zip(axes, ("keys", "queries"), np.meshgrid(blocks, blocks), strict=True):
    ax.imshow(owner, cmap="Pastel1", extent=(0, 16 * len(blocks), 16 * len(blocks), 0), vmax=8)
    ax.set(title=f"programs of the {name}' kernel", xlabel="key", ylabel="query")
    ax.set(xticks=16 * np.append(blocks, len(blocks)), yticks=16 * np.append(blocks, len(blocks)))
    ax.grid(color="white")
plt.show()

# %% [markdown]
# ## The project's kernels
#
# They add three things to yours. Sequences are packed, so the grid also goes over sequences and heads. exp is exp2, as
# in notebook 06. And P and dS are rounded to the inputs' dtype before their products, because tensor cores require it.
# Here is the loop of the keys' kernel; the rest of [attention_backward.py](../kernels/attention_backward.py) is
# addresses and dropout.

# %%
lines = inspect.getsource(attention_backward.keys_kernel.fn).splitlines()
begin = next(i for i, line in enumerate(lines) if "for o_block" in line)
end = next(i for i, line in enumerate(lines) if "dk = tl.dot" in line)
print("\n".join(lines[begin : end + 1]))

# %% [markdown]
# Sequences of at most 64 tokens take a shortcut that is not a compromise. All of P fits into one program, which then
# needs only five products, and no other program writes the same numbers.
#
# **Prediction.** Take sequences of 5, 70 and 130 tokens in bfloat16. Are the gradients bitwise the same in every order
# of programs? And if another sequence is appended to the batch?

# %%
cu_seqlens = torch.tensor([0, 5, 75, 205], dtype=torch.int32)
qkv, d_context = (torch.from_numpy(rng.standard_normal((205, n, 1, 64))).bfloat16() for n in (3, 1))
d_context = d_context[:, 0]
first = kernels.packed_attention_vjp(d_context, qkv, cu_seqlens)
same = []
for seed in range(5):
    with shuffled_grid(seed):
        same.append(torch.equal(first, kernels.packed_attention_vjp(d_context, qkv, cu_seqlens)))
print("bitwise equal in every order:", all(same))
longer = torch.cat([qkv, qkv[:30]]), torch.cat([d_context, d_context[:30]])
more = kernels.packed_attention_vjp(longer[1], longer[0], torch.tensor([0, 5, 75, 205, 235], dtype=torch.int32))
print("bitwise equal beside another sequence:", torch.equal(first, more[:205]))
exact = reference.packed_attention_vjp(d_context.double().numpy(), qkv.double().numpy(), cu_seqlens.numpy())
rms = np.sqrt(np.square(first.double().numpy() - exact).mean() / np.square(exact).mean())
print(f"rms error relative to the reference: below one unit roundoff of bfloat16: {rms < 2**-8}")

# %%
assert all(same) and torch.equal(first, more[:205])
assert rms < 2**-8

# %% [markdown]
# Neither the order of programs nor the neighbours in the batch change a bit.
#
# ## What to try next
#
# * Remove `- b_delta[None, :]` from your kernel. Which of dq, dk and dv are wrong? Which remain right, and why?
# * Compute δ in bfloat16 instead of float32 (`out.bfloat16()`), and look at the error of dq.
# * Run `backward(atomic=True)` in float64 (`.double()` instead of `.float()` above). Are the bits equal now? Should
#   they be?
# * `kernels.check` knows `packed_attention_vjp`: leave out a mask in a copy of the project's kernel, and check it.
# * Next: `14_layer_norm_backward`, where a sum over *all* rows raises the same question in another form.
