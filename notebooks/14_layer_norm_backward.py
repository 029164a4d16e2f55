# %% [markdown]
# # 14 · The backward pass of LayerNorm
#
# **Question.** How do many programs add up one gradient over all tokens, and get the same bits every time?
#
# LayerNorm's forward pass treats each row on its own (notebook 05). So does the gradient of its input. The gradients of
# γ and β are different: each is a sum over all rows of the batch, and the rows are spread over many programs.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# published for Linux: use WSL on Windows, a container on a Mac.

# %%
import os

# Triton reads this when it is imported. Kernels then run in its interpreter, on the CPU, one program at a time.
os.environ["TRITON_INTERPRET"] = "1"

import inspect

import matplotlib.pyplot as plt
import numpy as np
import torch
import triton
import triton.language as tl
from counting import distinct_bytes
from shuffling import in_random_order

from ernie_m import kernels
from ernie_m.kernels import layer_norm_backward, partials
from ernie_m.kernels.runtime import interpreter
from ernie_m.reference.layer_norm import layer_norm_vjp

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## One row
#
# With n for the normalised row, (x − mean) · rstd, and rstd = 1/√(var + ε), LayerNorm is y = n γ + β. Let dy be the
# gradient that arrives, and g = dy γ the gradient of n. The input acts in three ways: directly, through the mean and
# through the variance. Together:
#
# $$dx = \bigl(g - \text{mean}(g) - n \cdot \text{mean}(g\,n)\bigr) \cdot \text{rstd} .$$
#
# So a row needs two sums, over g and over g n, and both can be taken while the row is in registers.
#
# **Prediction.** Add the same number to all of x: y does not change. What must the sum of dx over a row be? Now scale
# x: y hardly changes. What does this say about the sum of dx · n?

# %%
rng = np.random.default_rng(0)
N, E, eps = 40, 96, 1e-5
x, dy = rng.standard_normal((2, N, E))
gamma = rng.standard_normal(E)
n = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
rstd = 1 / np.sqrt(x.var(1, keepdims=True) + eps)
g = dy * gamma
dx = (g - g.mean(1, keepdims=True) - n * (g * n).mean(1, keepdims=True)) * rstd
truth = layer_norm_vjp(dy, x, gamma, eps)
print("dx agrees with the reference:", np.abs(dx - truth[0]).max() < 1e-12)
print("rows of dx sum to 0, to rounding:", np.abs(dx.sum(1)).max() < 1e-12)
share = (dx * n).sum(1) / ((g * n).sum(1) * rstd[:, 0])  # dx · n, relative to what g alone would give
print("dx · n is below 1e-4 of what it would be without the second sum:", share.max() < 1e-4)

# %% [markdown]
# Each sum removes one direction from g: mean(g) the constant one, mean(g n) the one along n. The second is not removed
# entirely, because ε does not scale with x: a share of ε / (var + ε) is left.

# %%
assert np.abs(dx - truth[0]).max() < 1e-12 and np.abs(dx.sum(1)).max() < 1e-12
assert np.allclose(share, eps / (x.var(1) + eps), rtol=1e-6)

# %% [markdown]
# ## All rows
#
# The other two gradients are dγ = Σ dy n and dβ = Σ dy, over all rows. There are three ways to take such a sum:
#
# * **One program per block of columns**, which walks over all rows. With E = 768 and blocks of 64 columns that is a
#   dozen programs, on a GPU with more than a hundred multiprocessors. And it reads everything a second time.
# * **Atomic additions.** Each of P programs takes every P-th row, computes its dx and adds up dy n and dy in registers.
#   In the end it adds them to dγ and dβ in memory.
# * **Partial sums.** The same, but each program stores its sums in a place of its own. Then a second kernel adds the P
#   partial sums.
#
# Here are the last two in one kernel. Program p takes the rows p, p + P, p + 2P, and so on.

# %%
@triton.jit
def my_kernel(
    dy, x, gamma, means, rstds, dx, sums, N, P, E: tl.constexpr, BLOCK: tl.constexpr, ATOMIC: tl.constexpr
):  # sums: (2, E) if ATOMIC, else (P, 2, E)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0)
    d_gamma, d_beta = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for i_row in range(tl.program_id(0), N, P):
        b_x = tl.load(x + i_row * E + o_e, mask=m_e, other=0.0)
        b_dy = tl.load(dy + i_row * E + o_e, mask=m_e, other=0.0)
        rstd = tl.load(rstds + i_row)
        n = (b_x - tl.load(means + i_row)) * rstd
        g = b_dy * b_gamma
        b_dx = (g - tl.sum(g, 0) / E - n * (tl.sum(g * n, 0) / E)) * rstd
        tl.store(dx + i_row * E + o_e, b_dx, mask=m_e)
        d_gamma += b_dy * n
        d_beta += b_dy
    if ATOMIC:
        tl.atomic_add(sums + o_e, d_gamma, mask=m_e)
        tl.atomic_add(sums + E + o_e, d_beta, mask=m_e)
    else:
        p_sums = sums + tl.program_id(0) * (2 * E) + o_e
        tl.store(p_sums, d_gamma, mask=m_e)
        tl.store(p_sums + E, d_beta, mask=m_e)


def backward(dy, x, gamma, P=8, atomic=False):  # (N, E) x 2, (E,) -> (N, E), (E,) x 2
    (N, E), means = x.shape, x.mean(1)
    rstds = (x.var(1, correction=0) + eps).rsqrt()
    dx = torch.empty_like(x)
    sums = torch.zeros(2, E) if atomic else torch.empty(P, 2, E)
    my_kernel[(P,)](
        dy, x, gamma, means, rstds, dx, sums, N, P, E=E, BLOCK=triton.next_power_of_2(E), ATOMIC=atomic
    )
    return dx, *(sums if atomic else partials.sum_partials(sums, torch.float32))


# %% [markdown]
# Past the end of a row x reads as 0, so n is not 0 there. Why is no second mask needed, as it was in notebook 05?
# Because dy is 0 there too, and so is every term of every sum.
#
# **Prediction.** We run both versions twice in the usual order, then in three random orders (`in_random_order` of
# notebook 13). Which of dx, dγ and dβ keep their bits? And if P is 10 instead of 8?

# %%
names, arguments = ("dx", "dγ", "dβ"), [torch.from_numpy(a).float() for a in (dy, x, gamma)]
truth = layer_norm_vjp(*(a.double().numpy() for a in arguments), eps)


def compare(first, runs):
    return [all(torch.equal(a, run[i]) for run in runs) for i, a in enumerate(first)]


found, errors = {}, {}
for label, atomic in (("atomic", True), ("partial", False)):
    first = backward(*arguments, 8, atomic)
    found[label, "repeated"] = compare(first, [backward(*arguments, 8, atomic)])
    orders = [in_random_order(seed, backward, *arguments, 8, atomic) for seed in range(3)]
    found[label, "random orders"] = compare(first, orders)
    found[label, "P = 10"] = compare(first, [backward(*arguments, 10, atomic)])
    errors[label] = max(np.abs(a.numpy() - b).max() / np.abs(b).max() for a, b in zip(first, truth, strict=True))
    print(f"{label:7}  largest error, relative to the largest number, below 2^-20: {errors[label] < 2**-20}")
for (label, case), same in found.items():
    print(f"{label:7}  {case:13}  same bits: ", *(f"{name} {s!s:5}" for name, s in zip(names, same, strict=True)))

# %% [markdown]
# Both versions are right: float32 rounds by up to 2⁻²⁴, and a sum of 40 terms may lose a few bits more.
#
# dx keeps its bits in every case: no other program takes part. With atomic additions, dγ and dβ depend on the order in
# which programs end. With partial sums they do not. One program takes each partial sum in a fixed order, and the second
# kernel adds these in a fixed order too.
#
# But they do depend on P. A common choice is one program per multiprocessor of the GPU. Then two GPUs of different
# sizes give different bits for the same model. In this project P depends on the shape of the input alone. A tile is a
# few rows that a program takes at a time, 4 if E is 768:

# %%
print(inspect.getsource(partials.count_partials))
assert max(errors.values()) < 2**-20
assert found["atomic", "random orders"] == [True, False, False]
assert found["partial", "repeated"] == found["partial", "random orders"] == [True, True, True]
assert found["partial", "P = 10"] == [True, False, False]

# %% [markdown]
# ## What do partial sums cost?
#
# More programs keep more of the GPU busy, but each leaves a partial row, which is written and read again.
#
# **Prediction.** The model's kernel (below) has three vectors: dγ, dβ and the gradient of the bias that is added before
# LayerNorm. It reads dy, x and the residual, and writes dx. For 8,192 tokens, E = 768 and bfloat16: what share do 256
# float32 partial rows of each vector add to these bytes?

# %%
tokens, width = 8192, 768
main = 4 * tokens * width * 2
counts = np.array([1, 8, 64, 256, 1024, 4096])
extra = 2 * counts * 3 * width * 4  # written, and read again
for P, size in zip(counts, extra, strict=True):
    print(f"P = {P:5,}: {size / 1e6:6.2f} MB of partial sums, {100 * size / main:5.1f} % of {main / 1e6:.0f} MB")
figure, axes = plt.subplots(figsize=(5, 2.6), dpi=80)
axes.loglog(counts, extra / 1e6, "o-", label="partial sums, written and read")
axes.axhline(main / 1e6, color="0.4", linestyle="--", label="dy, x, residual and dx")
axes.axvline(partials.PARTIALS, color="C1", linewidth=1, label="the project's largest P")
axes.set(xlabel="P, partial sums", ylabel="MB")
axes.legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# 256 programs are more than a large GPU has multiprocessors. Their partial sums add less than a tenth, and the freshly
# written rows are likely to be still in the cache when they are read. With one partial row for every second token, the
# partial sums would cost more than everything else.
#
# Let us count what the small kernel really moves, as in notebook 05. The difference between P = 8 and P = 4:

# %%
moved = {P: distinct_bytes(backward, *arguments, P) for P in (4, 8)}
print(f"{moved[8] - moved[4]:,} bytes for 4 more rows of two vectors of {E} numbers")
assert moved[8] - moved[4] == 2 * 4 * 2 * E * 4 and main < extra[-1]

# %% [markdown]
# ## Statistics: keep or compute again?
#
# The backward pass needs the mean and rstd of each row. It has x, and could compute them again: two more sums. The
# forward pass has them already, and storing both takes 8 bytes per row. A row of 768 bfloat16 numbers takes 1,536. So
# the project stores the statistics, in float32.
#
# **Prediction.** What if they are stored in bfloat16, like everything else? `kernels.check` knows the bounds of
# `add_layer_norm_vjp` for bfloat16 inputs: one rounding of the result, float32 arithmetic before.

# %%
def from_statistics(kind=torch.float32):
    """The project's backward pass, with the forward pass's statistics stored in a dtype."""

    def vjp(dy, x, bias, residual, gamma, eps):
        _, *stored = kernels.add_layer_norm(x, bias, residual, gamma, gamma, eps, return_statistics=True)
        means, rstds = (s.to(kind).float() for s in stored)
        dx, *sums = layer_norm_backward.add_layer_norm_backward(dy, x, bias, residual, gamma, means, rstds)
        return dx, sums[0], dx.clone(), *sums[1:]

    return vjp


options = {"dtypes": ["bfloat16"], "examples": 2, "quick": True, "plain": True}
report = kernels.check(from_statistics(), "add_layer_norm_vjp", **options)
print("statistics in float32   within the bounds:", bool(report))
caught = None
try:
    kernels.check(from_statistics(torch.bfloat16), "add_layer_norm_vjp", **options)
except kernels.Failure as failure:
    caught = failure
print("statistics in bfloat16  within the bounds:", caught is None)
print("smallest failing input, rows and columns:", *caught.inputs["x"].shape)

# %%
assert report and caught is not None

# %% [markdown]
# The smallest failing input is a row with one number. Its mean is that number, so n and dx must be 0. But the mean in
# bfloat16 is a little off, and the difference is multiplied by rstd, which is 1/√ε = 316 here. In longer rows, an rstd
# with 8 bits also makes all of a row wrong, by up to one part in 256, on top of the rounding of dx.
#
# ## The project's kernels
#
# The model's LayerNorm has a bias and a residual before it: v = x + bias + residual. The gradient of v is that of x and
# of the residual, and its sum over rows is that of the bias. Otherwise you know the kernel; it takes several rows
# (ROWS) at a time. Note that n comes from v and not from y: (y − β) / γ fails where γ is 0.

# %%
for function in (layer_norm_backward.normalised_vjp, layer_norm_backward.add_layer_norm_vjp_kernel):
    print(inspect.getsource(function.fn))

# %% [markdown]
# The second kernel adds the partial sums. It takes ROWS of them at a time, keeps ROWS sums, and adds these at the end:
# another order than one after the other, but always the same.

# %%
print(inspect.getsource(partials.sum_partials_kernel.fn))

# %% [markdown]
# **Prediction.** Does the whole operation keep its bits in random orders?

# %%
residual, bias = torch.from_numpy(rng.standard_normal((N, E))).float(), torch.from_numpy(rng.standard_normal(E)).float()
full = arguments[0], arguments[1], bias, residual, arguments[2], eps
first = kernels.add_layer_norm_vjp(*full)
orders = [in_random_order(seed, kernels.add_layer_norm_vjp, *full) for seed in range(3)]
same = compare(first, orders)
print("programs:", partials.count_partials(-(-N // layer_norm_backward.configuration(E).blocks["ROWS"])))
print("same bits in random orders:", all(same))

# %%
assert same == [True] * 5

# %% [markdown]
# ## What to try next
#
# * Leave out the term with `g * n` in `my_kernel`. Which of the sums in the first section is no longer nearly 0?
# * Store the statistics in float16 in `from_statistics`. Is that caught as well?
# * Set some of γ to 0 and compute n from y. Which gradients become nan?
# * Choose P = N: one partial row per row. How many bytes does `distinct_bytes` count?
# * Read `kernels/embedding_backward.py`, where a sum has as many terms as a word has occurrences.
# * Next: `15_what_the_model_knows` leaves the kernels and looks into the model.
