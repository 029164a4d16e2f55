# %% [markdown]
# # 14 · LayerNorm, backward
#
# **Question.** The gradients of γ and β are sums over all rows of the batch. How do hundreds of programs add them up so
# that the result is the same on every run and on every GPU?
#
# Notebook 05 wrote LayerNorm as a kernel with one program per row. The backward pass begins in the same way. Then it
# runs into the sums, which no single program owns.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, then `jupyter lab notebooks`. Triton is published for Linux: use WSL on
# Windows, a container on a Mac.

# %%
import os

# Triton reads this when it is imported. Kernels then run in its interpreter, on the CPU, one program at a time.
os.environ["TRITON_INTERPRET"] = "1"

import inspect
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
import triton
import triton.language as tl
from counting import distinct_bytes

from ernie_m import kernels, reference
from ernie_m.kernels import partials
from ernie_m.kernels.runtime import interpreter
from ernie_m.kernels.runtime.shuffled_grid import shuffled_grid

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## One row
#
# With n = (x − mean) · rstd, where rstd = 1/√(variance + ε), LayerNorm is y = n γ + β. Notebook 09 derives, for one row
# and with g = dy · γ,
#
# $$dx = (g - \text{mean}(g) - n \cdot \text{mean}(g\, n)) \cdot \text{rstd} .$$
#
# So a row needs two sums, mean(g) and mean(g n): as in the forward pass, one program can do it. The two means remove
# what the normalisation removes: adding a constant to x changes nothing, so dx sums to 0; nor does stretching it, so
# dx · n sums to (nearly) 0.
#
# The forward kernel has saved mean and rstd of each row, 8 bytes in float32. Must it? n could also come from y: it is
# (y − β) / γ, and then x need not be kept.
#
# **Prediction.** When does that fail?

# %%
rng = np.random.default_rng(0)
N, E, eps = 64, 96, 1e-5
x, dy = rng.standard_normal((2, N, E))
gamma, beta = rng.standard_normal((2, E))
gamma[5] = 0
y = reference.layer_norm(x, gamma, beta, eps)
with np.errstate(invalid="ignore"):
    from_y = (y - beta) / gamma
normalised = reference.layer_norm(x, np.ones(E), np.zeros(E), eps)
print("columns in which n cannot be had from y:", *np.flatnonzero(np.isnan(from_y).any(axis=0)))
dx, dgamma, dbeta = reference.layer_norm_vjp(dy, x, gamma, eps)
print("dx sums to 0 in each row:", np.abs(dx.sum(1)).max() < 1e-12)
print("dx · n sums to nearly 0: ", np.abs((dx * normalised).sum(1)).max() < 1e-3)

# %% [markdown]
# Where γ is 0, y is β and x has left no trace in it. In bfloat16 a small γ is nearly as bad. So the kernels keep x, and
# the two statistics in float32.

# %%
assert np.isnan(from_y).any(axis=0).nonzero()[0].tolist() == [5]
assert np.abs(dx.sum(1)).max() < 1e-12 and np.abs((dx * normalised).sum(1)).max() < 1e-3

# %% [markdown]
# ## All rows
#
# γ and β are shared by all rows, so their gradients are sums over rows:
#
# $$d\gamma = \sum_i dy_i\, n_i, \qquad d\beta = \sum_i dy_i .$$
#
# There are three ways to let many programs add to one sum.
#
# * **Atomic**: each program adds its rows' part to dγ in memory, with `tl.atomic_add`.
# * **A row each**: each program writes its part, a row of E numbers, and a second kernel adds up the N rows.
# * **Partial sums**: there are only P programs. The rows are cut into tiles of 8. Program p takes the tiles p, p + P,
#   p + 2P, ..., adds up its share in registers, and writes one row. A second kernel adds up P rows.
#
# The second is an extreme case of the third. Here are the two forms in one kernel.


# %%
@triton.jit
def vjp_kernel(
    dy, v, gamma, means, rstds, dx, sums, N, P,
    E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ATOMIC: tl.constexpr, FAULT: tl.constexpr,
):  # fmt: skip
    i_program = tl.program_id(0)
    o_e = tl.arange(0, BLOCK)
    m_e = o_e < E
    b_gamma = tl.load(gamma + o_e, mask=m_e, other=0.0).to(tl.float32)
    d_bias = tl.zeros((BLOCK,), tl.float32)
    d_gamma = tl.zeros((BLOCK,), tl.float32)
    d_beta = tl.zeros((BLOCK,), tl.float32)
    for i_tile in range(i_program, tl.cdiv(N, ROWS), P):
        o_n = i_tile * ROWS + tl.arange(0, ROWS)
        mask = (o_n < N)[:, None] & m_e[None, :]
        o_ne = o_n[:, None] * E + o_e[None, :]
        b_dy = tl.load(dy + o_ne, mask=mask, other=0.0).to(tl.float32)
        b_v = tl.load(v + o_ne, mask=mask, other=0.0)
        mean = tl.load(means + o_n, mask=o_n < N, other=0.0)
        rstd = tl.load(rstds + o_n, mask=o_n < N, other=0.0)[:, None]
        n = tl.where(mask, (b_v - mean[:, None]) * rstd, 0.0)
        g = b_dy * b_gamma[None, :]
        mean_g, mean_gn = tl.sum(g, 1) / E, tl.sum(g * n, 1) / (BLOCK if FAULT else E)
        b_dx = tl.where(mask, (g - mean_g[:, None] - n * mean_gn[:, None]) * rstd, 0.0)
        tl.store(dx + o_ne, b_dx.to(dx.dtype.element_ty), mask=mask)
        d_bias += tl.sum(b_dx, 0)
        d_gamma += tl.sum(b_dy * n, 0)
        d_beta += tl.sum(b_dy, 0)
    p_sums = sums + o_e if ATOMIC else sums + i_program * (3 * E) + o_e
    if ATOMIC:
        tl.atomic_add(p_sums, d_bias, mask=m_e)
        tl.atomic_add(p_sums + E, d_gamma, mask=m_e)
        tl.atomic_add(p_sums + 2 * E, d_beta, mask=m_e)
    else:
        tl.store(p_sums, d_bias, mask=m_e)
        tl.store(p_sums + E, d_gamma, mask=m_e)
        tl.store(p_sums + 2 * E, d_beta, mask=m_e)


def my_vjp(dy, x, bias, residual, gamma, eps, P=4, atomic=False, fault=False):
    """The gradients of x, the bias, the residual, γ and β, where LayerNorm's input is v = x + bias + residual."""
    (N, E), P = x.shape, min(P, triton.cdiv(len(x), 8))
    v = x.float() + bias.float() + residual.float()
    means, rstds = v.mean(1), (v.var(1, unbiased=False) + eps).rsqrt()  # the forward kernel saves these
    dx, sums = torch.empty_like(x), torch.zeros(1 if atomic else P, 3, E)
    sizes = {"E": E, "ROWS": 8, "BLOCK": triton.next_power_of_2(E), "ATOMIC": atomic, "FAULT": fault}
    if N:
        vjp_kernel[(P,)](dy, v, gamma, means, rstds, dx, sums, N, P, **sizes)
    dbias, dgamma, dbeta = sums.sum(0).to(gamma.dtype)
    return dx, dbias, dx.clone(), dgamma, dbeta


# %% [markdown]
# `kernels.check` knows this operation. It draws cotangents too, and shrinks them with the other inputs when something
# is wrong. We check the kernel as it is, and once more with a fault: `FAULT` divides the second sum by the size of the
# block instead of E.
#
# **Prediction.** The fault is that of notebook 05 in another place. Which numbers of columns show it: 1, 2, 4, 5, 8?

# %%
report = kernels.check(my_vjp, "add_layer_norm_vjp", dtypes=["float32", "bfloat16"], examples=4, plain=True)
print("my_vjp is within the bounds:", bool(report), "in", ", ".join(report.dtypes))

caught = None
try:
    faulty = partial(my_vjp, fault=True)
    kernels.check(faulty, "add_layer_norm_vjp", dtypes=["float32"], examples=4, plain=True)
except kernels.Failure as failure:
    caught = failure
print("columns in the smallest failing input:", caught.inputs["x"].shape[-1])

# %% [markdown]
# Only 5: where the number of columns is a power of two, the block is as wide as the row.

# %%
columns = caught.inputs["x"].shape[-1]
assert report and columns != triton.next_power_of_2(columns)

# %% [markdown]
# ## How many partial sums?
#
# Partial sums are written and read again, in float32. More programs keep a GPU busier, but cost more bytes.
#
# **Prediction.** The base model, 8,192 tokens, bfloat16: the kernel reads dy, x and the residual and writes dx, 4
# passes over (8192, 768). What share of these bytes do the partial sums add, with P = 256? With a row for each token?

# %%
N, E = 8192, 768
main = 4 * N * E * 2 + 2 * N * 4  # and the two statistics
counts = 2 ** np.arange(14)
extra = counts * 3 * E * 4 * 2 / main  # three vectors, written and read
figure, ax = plt.subplots(figsize=(5, 2.6), dpi=80)
ax.loglog(counts, extra, "o-", label="partial sums / everything else")
ax.axvline(132, color="C1", linestyle="--", label="multiprocessors of an H100")
ax.axvline(partials.PARTIALS, color="C2", linestyle=":", label=f"P here, {partials.PARTIALS}")
ax.set(xlabel="P, programs and partial sums", ylabel="share of bytes")
ax.legend(fontsize=7)
plt.show()
at = dict(zip(counts.tolist(), extra.tolist(), strict=True))
print(f"P = 256 adds {at[256]:.0%}, a row for each token {at[8192]:.0%}")
small = [torch.from_numpy(x).bfloat16() for x in (*rng.standard_normal((3, 32, 96)), *rng.standard_normal((2, 96)))]
arguments = (small[0], small[1], small[3], small[2], small[4], 1e-5)
few, many = (distinct_bytes(lambda P=P: my_vjp(*arguments, P=P)) for P in (1, 4))
print("bytes that three more partial sums write, counted:", many - few, " by the formula:", 3 * 3 * 96 * 4)

# %% [markdown]
# With a row for each token, the sums would cost three times as much as everything else. With 256 it is a tenth, and
# they are so small (2.4 MB) that they stay in a GPU's second-level cache.

# %%
assert at[256] < 0.1 and at[8192] > 2.5
assert many - few == 3 * 3 * 96 * 4

# %% [markdown]
# ## Why not atomic, and why not one per multiprocessor?
#
# With atomic additions there are no partial sums at all, and no second kernel. But the order of additions is the order
# in which programs happen to finish (notebook 13).
#
# Another popular choice is P = the number of multiprocessors: enough programs, and each as long as possible. It is
# repeatable on one GPU.
#
# **Prediction.** We run four versions in 6 random orders of programs: atomic; P = 4; P = 6; P = 4 again, as if on the
# same GPU. Which give one result in all orders? Do P = 4 and P = 6 agree, bit by bit?

# %%
rows = [torch.from_numpy(x).float() for x in (*rng.standard_normal((3, 96, 96)), *rng.standard_normal((2, 96)))]
arguments = (rows[0], rows[1], rows[3], rows[2], rows[4], 1e-5)
exact = reference.add_layer_norm_vjp(*(x.double().numpy() for x in arguments[:5]), 1e-5)[3]
found = {}
for name, options in {"atomic": {"atomic": True}, "P = 4": {}, "P = 6": {"P": 6}, "P = 4 again": {}}.items():
    results = set()
    for seed in range(6):
        with shuffled_grid(seed):
            dgamma = my_vjp(*arguments, **options)[3]
        results.add(dgamma.numpy().tobytes())
        assert np.abs(dgamma.double().numpy() - exact).max() < 1e-4
    found[name] = results
    print(f"{name:11} {'one result' if len(results) == 1 else 'several results'} in 6 orders")
print("P = 4 and P = 6 agree, bit by bit:", found["P = 4"] == found["P = 6"])

# %% [markdown]
# Each P gives the same bits in every order. But P = 4 and P = 6 add in different orders, so they differ: a model
# trained on a GPU with 132 multiprocessors would not be the one trained on a GPU with 108. So the project's P depends
# on the number of rows only, and its second kernel adds the partial sums in a fixed order.

# %%
assert len(found["atomic"]) > 1 == len(found["P = 4"]) == len(found["P = 6"])
assert found["P = 4"] == found["P = 4 again"] != found["P = 6"]

# %% [markdown]
# ## Statistics in float32
#
# mean and rstd are two numbers for a row of 768. Stored in the inputs' dtype they would take half the space, and some
# kernels do so.
#
# **Prediction.** rstd is rounded to bfloat16, an error of up to 0.4 %. By how much is a row's dx wrong? Is that more or
# less than the rounding of dx itself, which happens anyway?

# %%
v, cotangent = rng.standard_normal((2, 500, 768))
weight = rng.standard_normal(768)
mean, rstd = v.mean(1, keepdims=True), 1 / np.sqrt(v.var(1, keepdims=True) + eps)


def dx_with(mean, rstd):
    n, g = (v - mean) * rstd, cotangent * weight
    return (g - g.mean(1, keepdims=True) - n * (g * n).mean(1, keepdims=True)) * rstd


def rounded(x):
    return torch.from_numpy(x).bfloat16().double().numpy()


truth = dx_with(mean, rstd)
size = np.sqrt(np.square(truth).mean())
rms = {
    "dx rounded": np.sqrt(np.square(rounded(truth) - truth).mean()) / size,
    "statistics rounded": np.sqrt(np.square(dx_with(rounded(mean), rounded(rstd)) - truth).mean()) / size,
}
for name, value in rms.items():
    print(f"{name:19} rms error {value:.1e}")
scales = (dx_with(mean, rounded(rstd)) * truth).sum(1) / np.square(truth).sum(1)
print(f"with rstd rounded, a row's dx is too large or too small as a whole, by up to {np.abs(scales - 1).max():.1%}")

# %% [markdown]
# The errors are of similar size, so a loose tolerance would notice nothing. But they are of another kind. The rounding
# of dx differs from number to number and averages out in every sum. A wrong rstd makes a whole row too large or too
# small. Eight bytes a row avoid it.

# %%
assert 0.3 < rms["statistics rounded"] / rms["dx rounded"] < 3
assert 2e-3 < np.abs(scales - 1).max() < 5e-3

# %% [markdown]
# ## The project's kernels
#
# You have written the first one; theirs also adds x, bias and residual. The second adds the partial sums, a block of
# columns in each program.

# %%
print(inspect.getsource(partials.sum_partials_kernel.fn))
orders = set()
for seed in range(5):
    with shuffled_grid(seed):
        orders.add(b"".join(part.numpy().tobytes() for part in kernels.add_layer_norm_vjp(*arguments)))
print("results of the project's kernels in 5 orders:", len(orders))

# %%
assert len(orders) == 1

# %% [markdown]
# ## What to try next
#
# * Give each program a *contiguous* share of the rows instead of every P-th. Is the result still the same in every
#   order? What would be worse on a GPU?
# * Save y instead of x, and compute n from it. For which γ does `kernels.check` complain?
# * `kernels.check` also knows `bias_gelu_vjp`, whose bias gradient is such a sum. Write it.
# * Read [partials.py](../kernels/partials.py) and count: how many additions does one number pass through, for 8,192
#   rows?
# * Next: `15_what_the_model_knows`, which leaves the machine and looks at what all this has trained.
