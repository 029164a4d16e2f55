# %% [markdown]
# # 06 · Flash attention
#
# **Question.** How can a kernel compute a softmax over hundreds of keys without ever holding a row of scores?
#
# Notebook 02 computed attention as the formula says: all scores, their softmax, then the mean of the values. This
# notebook derives the form that GPUs run, first in NumPy. Then it reads the project's kernel, line by line, beside its
# twin: the same operation in NumPy.
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
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch

from ernie_m import kernels, reference
from ernie_m.kernels import attention
from ernie_m.kernels.runtime import interpreter

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## What is wrong with the plain form?
#
# **Prediction.** Take a batch of 64 sequences of 512 tokens, the base model (12 heads of 64 columns) and bfloat16. How
# large are q, k, v and the result of one layer, together? How large are the scores?

# %%
B, S, H, D = 64, 512, 12, 64
vectors = 4 * B * S * H * D * 2
scores_size = B * H * S * S * 2
print(f"q, k, v, context: {vectors / 1e6:.0f} MB;  scores: {scores_size / 1e6:.0f} MB, written and read several times")

# %% [markdown]
# The scores are twice as large as the inputs and the result together, although they are only an intermediate. They grow
# with the square of the length. The aim is to compute a tile of scores, use it, and discard it.

# %%
assert scores_size == 2 * vectors

# %% [markdown]
# ## The online softmax
#
# The obstacle is the softmax. It starts with the row's largest score, which is not known before the last key. Take one
# query, and write s_j for its scores and v_j for the values. We want
#
# $$\text{context} = \frac{\sum_j e^{s_j - m}\, v_j}{\sum_j e^{s_j - m}}, \qquad m = \max_j s_j .$$
#
# Suppose that m is only the largest score **so far**, and that both sums have been built with it. Now a larger score
# m' arrives. Because $e^{s - m'} = e^{s - m} \cdot e^{m - m'}$, each term of both sums has to be multiplied by the same
# factor $\alpha = e^{m - m'}$, so we can multiply the sums themselves. With ℓ for the sum in the denominator:
#
# $$\ell' = \alpha\, \ell + e^{s - m'}, \qquad
#   \text{acc}' = \alpha\, \text{acc} + e^{s - m'}\, v .$$
#
# Only three values are carried along. The idea is Milakov's and Gimelshein's (2018); FlashAttention (2022) and
# FlashAttention-2 (2023) use these letters, except α. The code here and the kernel below use words:
#
# | letter | m | ℓ | O, before the division | α | L |
# |---|---|---|---|---|---|
# | in the code | `row_max` | `row_sum` | `acc` | `rescale` | `lse`, the log-sum-exp |
#
# **Prediction.** The scores 1, 3, 2, 5 arrive one after the other. What is `row_sum` after the second? (e⁻² = 0.135)

# %%
scores, values = np.array([1.0, 3.0, 2.0, 5.0]), np.array([10.0, 20.0, 30.0, 40.0])
row_max, row_sum, acc = -np.inf, 0.0, 0.0
print("score  row_max  rescale  row_sum    acc")
for s, v in zip(scores, values, strict=True):
    new = max(row_max, s)
    rescale, p = np.exp(row_max - new), np.exp(s - new)
    row_max, row_sum, acc = new, row_sum * rescale + p, acc * rescale + p * v
    print(f"{s:5.0f}  {row_max:7.0f}  {rescale:7.3f}  {row_sum:7.2f}  {acc:5.1f}")
truth = reference.softmax(scores) @ values
print(f"online {acc / row_sum:.1f}, reference {truth:.1f}")

# %% [markdown]
# The first step needs no special case: `row_max` is -inf, so `rescale` is exp(-inf) = 0.

# %%
assert abs(acc / row_sum - truth) < 1e-12

# %% [markdown]
# ## Tiles
#
# Now the same in blocks: BM queries at a time, which is one program on a GPU, and BN keys at a time, which is one step
# of its loop. `row_max` and `row_sum` become one number per query, `acc` one row per query.
#
# `with_rescale=False` is a fault, for later.

# %%
def online(q, k, v, BN=64, with_rescale=True, steps=None):  # (BM, D), (S, D), (S, D) -> (BM, D), (BM,)
    """Attention of one block of queries: the context, and the log-sum-exp of each query's scores."""
    row_max = np.full(len(q), -np.inf, q.dtype)
    row_sum, acc = np.zeros_like(row_max), np.zeros_like(q)
    for start in range(0, len(k), BN):
        scores = (q / math.sqrt(q.shape[1])) @ k[start : start + BN].T  # (BM, BN), never more
        new = np.maximum(row_max, scores.max(1))
        rescale = np.exp(row_max - new) if with_rescale else np.ones_like(new)
        probs = np.exp(scores - new[:, None])
        row_sum = row_sum * rescale + probs.sum(1)
        acc = acc * rescale[:, None] + probs @ v[start : start + BN]
        row_max = new
        if steps is not None:
            steps.append((row_max, row_sum))
    return acc / row_sum[:, None], row_max + np.log(row_sum)


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 200, 16))
truth, probs = reference.attention(q, k, v)
steps: list[tuple[np.ndarray, np.ndarray]] = []
context, lse = online(q[:32], k, v, BN=32, steps=steps)
print("largest difference below 1e-12:", np.abs(context - truth[:32]).max() < 1e-12)
assert np.abs(context - truth[:32]).max() < 1e-12

# %% [markdown]
# On the left are all scores, as the plain form has them, and in red the tile that one program holds at a time. The
# other two plots show what the program carries, for three of its queries. Where `row_sum` drops, it was rescaled.

# %%
figure, (left, top, bottom) = plt.subplots(1, 3, figsize=(9, 2.8), dpi=80)
left.imshow(q @ k.T / 4, cmap="viridis")
for edge in range(0, 200, 32):
    left.axvline(edge - 0.5, color="white", linewidth=0.5)
    left.axhline(edge - 0.5, color="white", linewidth=0.5)
left.add_patch(plt.Rectangle((63.5, -0.5), 32, 32, fill=False, color="red", linewidth=2))
left.set(xlabel="key", ylabel="query", title="scores, 200 x 200")
for query in (1, 5, 9):
    top.plot([m[query] for m, _ in steps], "o-", markersize=3, label=f"query {query}")
    bottom.plot([t[query] for _, t in steps], "o-", markersize=3)
top.set(xlabel="block of keys", title="row_max")
bottom.set(xlabel="block of keys", title="row_sum")
top.legend(fontsize=7)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The log-sum-exp
#
# `row_max + log(row_sum)` is log Σ exp(s_j), the **log-sum-exp** of a row. This one number per query is enough to
# recover the probabilities from the scores: p_j = exp(s_j − lse). A backward pass recomputes them this way, tile by
# tile.
#
# It also lets us combine results. Suppose that two programs each process a part of the keys, independently.
#
# **Prediction.** Their contexts are c₁ and c₂, their log-sum-exps l₁ and l₂. With which weights do you combine c₁ and
# c₂?

# %%
recomputed = np.exp(q[:32] @ k.T / 4 - lse[:, None])
print("probabilities from the log-sum-exp agree:", np.abs(recomputed - probs[:32]).max() < 1e-12)
(c1, l1), (c2, l2) = (online(q, part_k, part_v) for part_k, part_v in ((k[:77], v[:77]), (k[77:], v[77:])))
weight = 1 / (1 + np.exp(l2 - l1))[:, None]  # exp(l1) / (exp(l1) + exp(l2))
combined = weight * c1 + (1 - weight) * c2
print("the two parts, combined, agree:", np.abs(combined - truth).max() < 1e-12)

# %%
assert np.abs(recomputed - probs[:32]).max() < 1e-12 and np.abs(combined - truth).max() < 1e-12

# %% [markdown]
# ## A fault that short sequences hide
#
# **Prediction.** Suppose that somebody forgets to rescale. `kernels.check` looks for the smallest failing input. How
# many keys must it have at least, with blocks of BN = 64?

# %%
report = kernels.check(lambda q, k, v: online(q, k, v)[0], "attention_head", arrays="numpy", dtypes=["float32"])
print("online, with rescaling, is within the bounds:", bool(report))
caught = None
try:
    forgetful = partial(online, with_rescale=False)
    kernels.check(lambda q, k, v: forgetful(q, k, v)[0], "attention_head", arrays="numpy", dtypes=["float32"])
except kernels.Failure as failure:
    caught = failure
print("keys in the smallest failing input:", len(caught.inputs["k"]))

# %% [markdown]
# Up to 64 keys there is only one block, and nothing to rescale. A test on short sequences would always pass.

# %%
assert caught is not None
assert len(caught.inputs["k"]) == 65

# %% [markdown]
# ## Packed sequences
#
# Real batches are ragged. The project keeps tokens packed, one sequence after the other, and `cu_seqlens` says where
# each begins (notebook 02). The kernel has a program for each block of queries, in each head, of each sequence. The
# number of blocks is that of the longest sequence; programs without work return at once.
#
# **Prediction.** Take sequences of 5, 70 and 130 tokens, one head, and blocks of BM = 128 queries and BN = 64 keys. How
# many programs start, and how many have work? How many scores are computed, compared with a padded 3 x 130 x 130?

# %%
lengths = np.array([5, 70, 130])
chosen = attention.configuration("sm_90", torch.bfloat16, 64, int(lengths.max()))
BM, BN = chosen.blocks["BM"], chosen.blocks["BN"]
blocks_q, blocks_k = -(-lengths // BM), -(-lengths // BN)
print(f"BM = {BM}, BN = {BN}: {blocks_q.max() * len(lengths)} programs, {blocks_q.sum()} with work")
print(f"needed: {(lengths**2).sum():,} scores; in tiles: {(blocks_q * blocks_k).sum() * BM * BN:,}")
print(f"padded: {3 * 130**2:,} needed, {3 * blocks_q.max() * blocks_k.max() * BM * BN:,} in tiles")

# %% [markdown]
# The longest sequence needs two blocks of queries, so every sequence gets two programs, and in the other two sequences
# one of them has no work.

# %%
assert (blocks_q.max() * len(lengths), blocks_q.sum()) == (6, 4)

# %% [markdown]
# Sequences do not affect each other. To check this, change one token of the second sequence and compare bit by bit.

# %%
cu_seqlens = torch.tensor([0, *lengths.cumsum()], dtype=torch.int32)
qkv = torch.from_numpy(rng.standard_normal((205, 3, 1, 64))).to(torch.bfloat16)
before, lse = kernels.packed_attention(qkv, cu_seqlens, return_lse=True)
changed = qkv.clone()
changed[40] += 1
after = kernels.packed_attention(changed, cu_seqlens)
for name, part in (("first", slice(0, 5)), ("second", slice(5, 75)), ("third", slice(75, 205))):
    print(f"{name:6} sequence bitwise unchanged: {torch.equal(before[part], after[part])}")
assert torch.equal(before[:5], after[:5]) and torch.equal(before[75:], after[75:])

truth = reference.packed_attention(qkv.double().numpy(), cu_seqlens.numpy())
rms = np.sqrt(np.square(before.double().numpy() - truth).mean() / np.square(truth).mean())
print(f"rms error relative to the twin: {rms / 2**-8:.1f} u, with u = 2^-8")
assert rms < 2**-8

# %% [markdown]
# ## The kernel, line by line, beside its twin
#
# You have written this kernel already: it is `online`, with other words for the same steps.
#
# | `online`, in NumPy | the kernel, in Triton |
# |---|---|
# | one call, for a block of queries `q` | one program; `tl.load` fetches its block of `q` |
# | `q`, `k`, `v` are slices of arrays | a pointer, and offsets that lead to the numbers |
# | `for start in range(0, len(k), BN)` | the same loop; a mask where the last block is not full |
# | `@` | `tl.dot`, which runs on the tensor cores |
# | `scores.max(1)`, `probs.sum(1)` | `tl.max(scores, 1)`, `tl.sum(probs, 1)` |
# | `return acc / row_sum[:, None]` | the same division, then `tl.store` |
#
# `show` prints a part of a function's source. We start with the twin. Three of its lines matter here: the scores, their
# softmax, the product with v. (`record` stores a value if a trace is active, as in notebook 00.)


# %%
def show(function, first: str, last: str) -> None:
    """Print the lines from the one that contains `first` to the end of the statement that contains `last`."""
    lines = inspect.getsource(getattr(function, "fn", function)).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= begin and last in line)
    while (text := "\n".join(lines[begin : end + 1])).count("(") > text.count(")"):
        end += 1
    print(text)


show(reference.attention, "D = q.shape", "return")

# %% [markdown]
# **Which part is mine?** A program computes one block of queries of one sequence in one head. The grid has one axis;
# these lines turn the program's number into the three numbers. `sequence_bounds` reads `cu_seqlens`; the `if` skips
# programs without queries.

# %%
kernel = attention.packed_attention_kernel
show(kernel, "i_block =", "if i_block")

# %% [markdown]
# **Where is my data?** qkv is (T, 3, H, D), so a token's row is 3·H·D numbers long: that is `STRIDE`. Keys are H·D
# numbers after queries, values H·D after keys. Note the shapes: `p_k` is (D, BN), with keys as columns. The transpose
# in `q @ kᵀ` costs nothing; it only changes the address arithmetic.

# %%
show(kernel, "STRIDE: tl.constexpr", "q = tl.load")

# %% [markdown]
# **What do I carry?** The three values of the online softmax, in float32, whatever the inputs' dtype.

# %%
show(kernel, "row_max = ", "acc = ")

# %% [markdown]
# **The loop.** Full blocks need no mask: every key exists. Only the last block, if it is not full, has to mask what
# follows the sequence: the next sequence's keys, or memory that is not part of the array. `LOOP` is False if every
# sequence fits in one block of keys. `DROP` is for training, where some probabilities are dropped; without it, the
# compiler leaves those lines out.

# %%
show(kernel, "whole = ", "m_n, scale2, b_bits, threshold, keep, True, DROP")

# %% [markdown]
# **One step.** These are the lines of `online` above, with three differences:
#
# * exp(x) is exp2(x · log₂e), and GPUs have an instruction for exp2. `scale2` is log₂(e)/√D, so that the scale and the
#   change of base are one multiplication. `row_max` is therefore in base-2 logarithms.
# * The probabilities are rounded to the inputs' dtype before the second product, because tensor cores require it.
# * A masked score is -inf, and its probability exactly 0. In the twin, `softmax` applies the mask.

# %%
show(attention.attend_to_block, "scores = ", "return")

# %% [markdown]
# **The end.** Divide by `row_sum`, once and not in every step, and round once. Store the log-sum-exp, converted back to
# natural logarithms.

# %%
show(kernel, "p_out = ", "tl.store(p_lse")
expected = (qkv[75:, 0, 0].double() @ qkv[75:, 1, 0].double().T / math.sqrt(64)).logsumexp(1)
print("log-sum-exp agrees within 1e-5:", bool((lse[0, 75:] - expected).abs().max() < 1e-5))
assert (lse[0, 75:] - expected).abs().max() < 1e-5

# %% [markdown]
# ## What to try next
#
# * Call `online` with a BN of 1 and with 1,000. Are the results bitwise the same? Should they be?
# * In the figure, why does `row_sum` drop for some queries, while `row_max` never does?
# * Large scores: multiply q by 100. Which queries have a `row_sum` of almost exactly 1, and why?
# * Read [kernels/first_token.py](../kernels/first_token.py): attention for one query per sequence, without blocks of
#   queries.
# * The exercises include a softmax for large scores, and attention for one head.
# * Next: [07_roofline](07_roofline.ipynb), on what all this can gain, and what it cannot.
