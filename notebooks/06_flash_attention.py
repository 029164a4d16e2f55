# %% [markdown]
# # 06 · Flash attention
#
# **Question.** How can a kernel compute a softmax over hundreds of keys without ever holding a row of scores?
#
# Notebook 02 computed attention as it is written: all scores, their softmax, then the mean of the values. This notebook
# derives the form that GPUs run, first in NumPy, and then reads the room's kernel line by line beside its twin.
#
# *To run this elsewhere:* clone the repository, `pip install ".[notebooks]"`, `jupyter lab notebooks`. Triton is
# published for Linux: on Windows use WSL, on a Mac a container.

# %%
import os

# Triton looks at this when it is imported: kernels then run in its interpreter, on the CPU, one program at a time.
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
# **Prediction.** A batch of 64 sequences of 512 tokens, the base model (12 heads of 64 columns), bfloat16. How large
# are q, k, v and the result of one layer, together? How large are the scores?

# %%
B, S, H, D = 64, 512, 12, 64
vectors = 4 * B * S * H * D * 2
scores_size = B * H * S * S * 2
print(f"q, k, v, context: {vectors / 1e6:.0f} MB;  scores: {scores_size / 1e6:.0f} MB, written and read several times")
assert scores_size == 2 * vectors

# %% [markdown]
# The scores are twice as large as everything that anybody asked for, and they are only an intermediate. They grow with
# the square of the length. The aim: compute a tile of scores, use it, and forget it.
#
# ## The online softmax
#
# The obstacle is the softmax. Its first step is the row's largest score, which nobody knows before the last key. Take
# one query, and write s_j for its scores and v_j for the values. We want
#
# $$\text{context} = \frac{\sum_j e^{s_j - m}\, v_j}{\sum_j e^{s_j - m}}, \qquad m = \max_j s_j .$$
#
# Suppose that m is only the largest score **so far**, and that both sums have been built with it. Now a larger score m'
# turns up. Because $e^{s - m'} = e^{s - m} \cdot e^{m - m'}$, each term of both sums is wrong by the same factor, and
# that factor can be taken out of the sum:
#
# $$\text{total}' = \text{total} \cdot e^{m - m'} + e^{s - m'}, \qquad
#   \text{acc}' = \text{acc} \cdot e^{m - m'} + e^{s - m'} v .$$
#
# So three things are carried along: `largest`, `total`, `acc`. Nothing else.
#
# **Prediction.** Scores 1, 3, 2, 5, one after the other. What is `total` after the second? (e⁻² = 0.135)

# %%
scores, values = np.array([1.0, 3.0, 2.0, 5.0]), np.array([10.0, 20.0, 30.0, 40.0])
largest, total, acc = -np.inf, 0.0, 0.0
print("score  largest  shrink  total    acc")
for s, v in zip(scores, values, strict=True):
    new = max(largest, s)
    shrink, p = np.exp(largest - new), np.exp(s - new)
    largest, total, acc = new, total * shrink + p, acc * shrink + p * v
    print(f"{s:5.0f}  {largest:7.0f}  {shrink:6.3f}  {total:5.2f}  {acc:5.1f}")
truth = reference.softmax(scores) @ values
print(f"online {acc / total:.1f}, reference {truth:.1f}")
assert abs(acc / total - truth) < 1e-12

# %% [markdown]
# The first step needs no special case: `largest` is -inf, exp(-inf) is 0, and so nothing is kept of the empty sums.
#
# ## Tiles
#
# Now the same with blocks: BM queries at a time, which is one program on a GPU, and BN keys at a time, which is one
# step of its loop. `largest` and `total` become one number per query, `acc` one row per query.
#
# `with_shrink=False` is a fault for later.


# %%
def online(q, k, v, BN=64, with_shrink=True, steps=None):  # (BM, D), (S, D), (S, D) -> (BM, D), (BM,)
    """Attention of one block of queries: the context, and the log-sum-exp of each query's scores."""
    largest = np.full(len(q), -np.inf, q.dtype)
    total, acc = np.zeros_like(largest), np.zeros_like(q)
    for start in range(0, len(k), BN):
        scores = (q / np.sqrt(q.dtype.type(q.shape[1]))) @ k[start : start + BN].T  # (BM, BN): all that there ever is
        new = np.maximum(largest, scores.max(1))
        shrink = np.exp(largest - new) if with_shrink else np.ones_like(new)
        probs = np.exp(scores - new[:, None])
        total = total * shrink + probs.sum(1)
        acc = acc * shrink[:, None] + probs @ v[start : start + BN]
        largest = new
        if steps is not None:
            steps.append((largest, total))
    return acc / total[:, None], largest + np.log(total)


rng = np.random.default_rng(0)
q, k, v = rng.standard_normal((3, 200, 16))
truth, probs = reference.attention(q, k, v)
steps: list[tuple[np.ndarray, np.ndarray]] = []
context, lse = online(q[:32], k, v, BN=32, steps=steps)
print("largest difference below 1e-14:", np.abs(context - truth[:32]).max() < 1e-14)
assert np.abs(context - truth[:32]).max() < 1e-14

# %% [markdown]
# Left: the scores as the plain form has them, and in red what one program holds at one time. Right: what it carries,
# for three of its queries; jumps down of `total` are shrinks.

# %%
figure, (left, top, bottom) = plt.subplots(1, 3, figsize=(9, 2.8), dpi=80)
left.imshow(q @ k.T / 4, cmap="viridis")
for edge in range(0, 200, 32):
    left.axvline(edge - 0.5, color="white", linewidth=0.5)
    left.axhline(edge - 0.5, color="white", linewidth=0.5)
left.add_patch(plt.Rectangle((63.5, -0.5), 32, 32, fill=False, color="red", linewidth=2))
left.set(xlabel="key", ylabel="query", title="scores, 200 x 200")
for query in (1, 5, 9):
    top.plot([m[query] for m, _ in steps], "o-", markersize=3)
    bottom.plot([t[query] for _, t in steps], "o-", markersize=3)
top.set(xlabel="block of keys", title="largest")
bottom.set(xlabel="block of keys", title="total")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The log-sum-exp
#
# `largest + log(total)` is log Σ exp(s_j), the **log-sum-exp** of a row. One number per query, and it is all that is
# needed to get the probabilities back: p_j = exp(s_j − lse). A backward pass recomputes them from it, tile by tile.
#
# It also joins two halves. Let two programs each take half of the keys, without knowing of one another.
#
# **Prediction.** Their contexts are c₁ and c₂, their log-sum-exps l₁ and l₂. With which weights do you mix c₁ and c₂?

# %%
recomputed = np.exp(q[:32] @ k.T / 4 - lse[:, None])
print("probabilities from the log-sum-exp agree:", np.abs(recomputed - probs[:32]).max() < 1e-14)
(c1, l1), (c2, l2) = (online(q, part_k, part_v) for part_k, part_v in ((k[:77], v[:77]), (k[77:], v[77:])))
weight = 1 / (1 + np.exp(l2 - l1))[:, None]  # exp(l1) / (exp(l1) + exp(l2))
joined = weight * c1 + (1 - weight) * c2
print("two halves, joined, agree:", np.abs(joined - truth).max() < 1e-14)
assert np.abs(recomputed - probs[:32]).max() < 1e-14 and np.abs(joined - truth).max() < 1e-14

# %% [markdown]
# ## A fault that short sequences hide
#
# **Prediction.** Somebody forgets to shrink. `kernels.check` looks for the smallest failing input. How many keys does
# the input have at least?

# %%
report = kernels.check(lambda q, k, v: online(q, k, v)[0], "attention_head", arrays="numpy", dtypes=["float32"])
print("online, with the shrink, is within the bounds:", bool(report))
caught = None
try:
    forgetful = partial(online, with_shrink=False)
    kernels.check(lambda q, k, v: forgetful(q, k, v)[0], "attention_head", arrays="numpy", dtypes=["float32"])
except kernels.Failure as failure:
    caught = failure
assert caught is not None
print("keys in the smallest failing input:", len(caught.inputs["k"]))
assert len(caught.inputs["k"]) == 65

# %% [markdown]
# Up to 64 keys there is only one block, and nothing to shrink. A test on short sequences would pass for ever.
#
# ## Packed sequences
#
# Real batches are ragged. The room keeps tokens packed, one sequence behind the other, and `cu_seqlens` says where each
# begins (notebook 02). The kernel's grid has three axes: blocks of queries, heads, sequences. It has to be large enough
# for the longest sequence; programs that find nothing to do leave at once.
#
# **Prediction.** Sequences of 5, 70 and 130 tokens, one head; blocks of BM = 128 queries and BN = 64 keys. How many
# programs start, and how many have work? How many scores are computed, compared to a padded 3 x 130 x 130?

# %%
lengths = np.array([5, 70, 130])
chosen = attention.configuration("sm_90", torch.bfloat16, 64, int(lengths.max()))
BM, BN = chosen.blocks["BM"], chosen.blocks["BN"]
blocks_q, blocks_k = -(-lengths // BM), -(-lengths // BN)
print(f"BM = {BM}, BN = {BN}: {blocks_q.max() * len(lengths)} programs, {blocks_q.sum()} with work")
print(f"needed: {(lengths**2).sum():,} scores; in tiles: {(blocks_q * blocks_k).sum() * BM * BN:,}")
print(f"padded: {3 * 130**2:,} needed, {3 * blocks_q.max() * blocks_k.max() * BM * BN:,} in tiles")
assert (blocks_q.max() * len(lengths), blocks_q.sum()) == (6, 4)

# %% [markdown]
# Run it, and see that sequences are strangers to each other: change one token of the second, and compare bit by bit.

# %%
cu_seqlens = torch.tensor([0, *lengths.cumsum()], dtype=torch.int32)
qkv = torch.from_numpy(rng.standard_normal((205, 3, 1, 64))).to(torch.bfloat16)
before, lse = kernels.packed_attention(qkv, cu_seqlens, return_lse=True)
changed = qkv.clone()
changed[40] += 1
after = kernels.packed_attention(changed, cu_seqlens)
for name, part in (("first", slice(0, 5)), ("second", slice(5, 75)), ("third", slice(75, 205))):
    print(f"{name:6} sequence: bitwise the same: {torch.equal(before[part], after[part])}")
assert torch.equal(before[:5], after[:5]) and torch.equal(before[75:], after[75:])

truth = reference.packed_attention(qkv.double().numpy(), cu_seqlens.numpy())
rms = np.sqrt(np.square(before.double().numpy() - truth).mean() / np.square(truth).mean())
print(f"rms error against the twin: {rms / 2**-8:.2f} u, with u = 2^-8")
assert rms < 2**-8

# %% [markdown]
# ## The kernel, line by line, beside its twin
#
# `show` prints a part of a function's source as it stands in the room. First the twin. Three lines of it matter here:
# the scores, their softmax, the product with v. (`record` keeps a value if somebody traces; notebook 08 does.)


# %%
def show(function, first: str, last: str) -> None:
    """Print the lines from the one that contains `first` to the next that contains `last`."""
    lines = inspect.getsource(getattr(function, "fn", function)).splitlines()
    begin = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= begin and last in line)
    print("\n".join(lines[begin : end + 1]))


show(reference.attention, "D = q.shape", "return")

# %% [markdown]
# **Who am I?** A program is one block of queries, of one head, of one sequence. The twin's loop over sequences is here
# the grid's third axis. `sequence_bounds` reads `cu_seqlens`, and the `if` sends programs home that have no queries.

# %%
kernel = attention.packed_attention_kernel
show(kernel, "i_block =", "if i_block")

# %% [markdown]
# **Where does my data lie?** qkv is (T, 3, H, D), so a token's row is 3·H·D numbers long: that is `STRIDE`. Keys come
# H·D numbers behind queries, values H·D behind keys. Note the shapes: `p_k` is (D, BN), keys as columns. The transposed
# matrix of `q @ kᵀ` costs nothing; it is only another arithmetic of addresses.

# %%
show(kernel, "STRIDE: tl.constexpr", "q = tl.load")

# %% [markdown]
# **What do I carry?** The three things of the online softmax, in float32, whatever the inputs are.

# %%
show(kernel, "largest = ", "acc = ")

# %% [markdown]
# **The walk.** Whole blocks need no mask: every key exists. Only the last, broken one has to hide what lies behind the
# sequence, which is the next sequence's keys, or somebody else's memory.

# %%
show(kernel, "whole = ", "attend_to_block(q, b_k, b_v, largest, total, acc, m_n, scale2, True)")

# %% [markdown]
# **One step.** Compare it with `online` above: the same lines. Three differences are for speed or precision:
#
# * exp(x) is exp2(x · log₂e), and GPUs have an instruction for exp2. `scale2` is log₂(e)/√D, so that the scale and the
#   change of base are one multiplication. `largest` is then in units of log₂.
# * The probabilities are rounded to the inputs' dtype before the second product, because tensor cores want it so.
# * A masked score is -inf, its probability exactly 0. In the twin this is the mask of `softmax`.

# %%
show(attention.attend_to_block, "scores = ", "return")

# %% [markdown]
# **The end.** Divide by the total, once and not in every step, round once, and keep the log-sum-exp, back in natural
# logarithms.

# %%
show(kernel, "p_out = ", "tl.store(p_lse")
wanted = (qkv[75:, 0, 0].double() @ qkv[75:, 1, 0].double().T / math.sqrt(64)).logsumexp(1)
print("log-sum-exp agrees within 1e-5:", bool((lse[0, 75:] - wanted).abs().max() < 1e-5))
assert (lse[0, 75:] - wanted).abs().max() < 1e-5

# %% [markdown]
# ## What to try next
#
# * Give `online` a BN of 1 and one of 1,000. Are the results bitwise the same? Should they be?
# * In the figure, why does `total` of some queries fall, and `largest` never?
# * Large scores: multiply q by 100. Which queries have a `total` of almost exactly 1, and why?
# * Read `kernels/first_token.py`: attention for one query per sequence, where there is no block of queries.
# * The exercises have a softmax that survives large scores, and attention for one head.
# * Next: `07_roofline`, on what all this can and cannot buy.
