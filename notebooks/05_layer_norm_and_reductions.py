# %% [markdown]
# # 05 · LayerNorm, and reductions
#
# **Question.** How does one program add up a row, in which precision, and what does it save to do several steps in one
# kernel?
#
# GELU (notebook 04) treats each number on its own. LayerNorm needs the mean and the variance of a whole row before it
# can write the first number. Such a step, from many numbers to one, is a **reduction**.
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

from ernie_m import kernels
from ernie_m.kernels import layer_norm
from ernie_m.kernels.runtime import interpreter

interpreter.install()  # bfloat16 that rounds as on a GPU

# %% [markdown]
# ## One program per row
#
# The plan is simple: one program for each row. It loads the row, `tl.sum(row, 0)` adds up its numbers, and everything
# stays in registers, where a GPU's threads keep the numbers they work on, until the result is stored.
#
# But block sizes are powers of two, and row lengths need not be. A row of 6 needs a block of 8; the two extra elements
# are loaded as `other=0.0`. Zeros do not change a sum.
#
# **Prediction.** The row is 1, 2, 3, 4, 5, 6. Its mean is 3.5 and its variance 17.5 / 6 = 2.92. The kernel below
# forgets one thing: past the end of the row, `row - mean` is no longer 0. Which variance does it compute? You can work
# it out on paper.


# %%
@triton.jit
def statistics_kernel(x, statistics, E: tl.constexpr, BLOCK: tl.constexpr, MASK_AGAIN: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < E
    row = tl.load(x + tl.program_id(0) * E + offsets, mask=mask, other=0.0)
    mean = tl.sum(row, 0) / E
    centred = row - mean
    if MASK_AGAIN:
        centred = tl.where(mask, centred, 0.0)
    tl.store(statistics + 2 * tl.program_id(0), mean)
    tl.store(statistics + 2 * tl.program_id(0) + 1, tl.sum(centred * centred, 0) / E)

variances = {}
for again in (False, True):
    statistics = torch.empty(2)
    statistics_kernel[(1,)](torch.arange(1.0, 7.0), statistics, E=6, BLOCK=8, MASK_AGAIN=again)
    variances[again] = statistics[1].item()
    print(f"masked again: {again!s:5}  mean {statistics[0].item():.1f}  variance {variances[again]:.2f}")

# %% [markdown]
# The two extra elements add 2 · 3.5² = 24.5 to the sum of squares, which makes 42 / 6 = 7. **After every step that does
# not map 0 to 0, mask again before you sum.** Rows of 8 or 1,024 numbers would not show the fault: test with sizes that
# are not powers of two.

# %%
assert variances[False] == 7.0 and abs(variances[True] - 17.5 / 6) < 1e-6

# %% [markdown]
# ## Warps: which threads add up?
#
# A GPU runs threads in groups of 32, called **warps**. In the base model a row has E = 768 numbers, 24 for each thread
# of a warp. First every thread sums its own 24. Then the threads combine their sums: 16 pairs, 8 pairs, 4, 2, 1.
# Threads of the same warp can exchange registers directly; several warps would have to communicate through shared
# memory and wait for each other. So the project's kernel gives a row to one warp.
#
# The order of additions also decides how large the error is. In one running total, the first number passes through 767
# additions, and each may round. In the warp it passes through 23 + 5 = 28.
#
# **Prediction.** We sum 1,000 rows of 768 random numbers between 0 and 1 in float32, in both ways. By what factor is
# the running total's typical error larger: 1, 3, 10, 30?

# %%
rng = np.random.default_rng(0)
rows = rng.random((1000, 768), dtype=np.float32)
exact = rows.astype(np.float64).sum(axis=1)

running = np.zeros(1000, np.float32)
for e in range(768):
    running += rows[:, e]

threads = np.zeros((1000, 32), np.float32)
for e in range(24):
    threads += rows[:, 32 * e : 32 * e + 32]
while threads.shape[1] > 1:
    half = threads.shape[1] // 2
    threads = threads[:, :half] + threads[:, half:]
errors = {name: np.abs(total - exact) / exact for name, total in (("running", running), ("warp", threads[:, 0]))}
for name, error in errors.items():
    print(f"{name:8} typical relative error {np.sqrt((error**2).mean()) / 2**-24:.2g} · 2^-24")
factor = np.sqrt((errors["running"] ** 2).mean() / (errors["warp"] ** 2).mean())
print(f"the running total's is larger by a factor of {factor:.2g}")

figure, axes = plt.subplots(figsize=(5, 2.4), dpi=80)
for name, error in errors.items():
    axes.hist(error / 2**-24, bins=np.linspace(0, 30, 61), alpha=0.6, label=name)
axes.set(xlabel="relative error / 2⁻²⁴", ylabel="rows")
axes.legend()
plt.show()

# %% [markdown]
# The parallel order is not only faster, it is also more accurate.

# %%
assert 5 < factor < 30

# %% [markdown]
# ## Statistics in float32
#
# The model's numbers are bfloat16. Why not sum them in bfloat16 too?
#
# **Prediction.** Add the number 1 to a bfloat16 total, 768 times. What is the total?

# %%
total = torch.zeros((), dtype=torch.bfloat16)
for _ in range(768):
    total += 1
print("768 ones in bfloat16:", int(total))

# %% [markdown]
# After 256 the next bfloat16 number is 258. 257 is halfway between, and rounds to even: to 256. The total is stuck. So
# the kernels here convert to float32 when they load, and sum in float32.

# %%
assert total == 256

# %% [markdown]
# Float32 alone is not enough. There is a formula for the variance that needs only one pass over the row, mean(x²) −
# mean(x)². On paper it is the same, but it subtracts two numbers that are nearly equal when the mean is large.
#
# **Prediction.** At which ratio of mean to standard deviation is the one-pass formula's error, in float32, as large as
# the variance itself: 30, 300, 3,000? (Float32 has 24 bits, and x is squared.)

# %%
ratios = np.array([1, 3, 10, 30, 100, 300, 1000, 3000, 10000])
noise = rng.standard_normal((100, 768))
lost: dict[str, list[float]] = {"mean(x²) − mean(x)²": [], "mean((x − mean)²)": []}
for ratio in ratios:
    x = (noise + ratio).astype(np.float32)
    truth = x.astype(np.float64).var(axis=1)
    mean = x.mean(axis=1, keepdims=True)
    one_pass = (x * x).mean(axis=1) - (mean * mean)[:, 0]
    two_passes = np.square(x - mean).mean(axis=1)
    for name, variance in zip(lost, (one_pass, two_passes), strict=True):
        lost[name].append(float(np.median(np.abs(variance - truth) / truth)))
figure, axes = plt.subplots(figsize=(5, 2.6), dpi=80)
for name, error in lost.items():
    axes.loglog(ratios, np.maximum(error, 1e-9), "o-", label=name)
axes.axhline(1, color="0.6", linewidth=1)
axes.set(xlabel="mean / standard deviation", ylabel="relative error of the variance")
axes.legend()
plt.show()
for name, error in lost.items():
    print(f"{name:19} error above 1 % at a ratio of 100: {error[4] > 0.01}, at 10,000: {error[-1] > 0.01}")

# %% [markdown]
# The error grows with the square of the ratio, and reaches the size of the variance itself near 3,000, whose square is
# about 2²³. The second pass costs no memory traffic here: the row is already in registers.

# %%
assert max(lost["mean((x − mean)²)"]) < 1e-3 < 1 < lost["mean(x²) − mean(x)²"][-1]

# %% [markdown]
# ## Fusing the residual
#
# In the model, LayerNorm is never used alone. Each half of a layer ends with
#
# $$y = \text{LayerNorm}(x + \text{bias} + \text{residual}),$$
#
# where x is the result of a matrix product. As three operations, each reads its input from memory and writes its result
# back. One kernel can do all three while the row is in registers. That is **fusing**. The arithmetic stays the same;
# fusing saves the trips to memory and back.
#
# Here are the separate steps. `layer_norm.normalise_row` is the project's own helper; both additions use the same
# kernel.

# %%
@triton.jit
def add_kernel(x, z, y, STRIDE_Z: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < E
    b_x = tl.load(x + i_row * E + offsets, mask=mask, other=0.0).to(tl.float32)
    b_z = tl.load(z + i_row * STRIDE_Z + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + i_row * E + offsets, (b_x + b_z).to(y.dtype.element_ty), mask=mask)


@triton.jit
def norm_kernel(x, gamma, beta, y, eps, E: tl.constexpr, BLOCK: tl.constexpr):
    i_row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < E
    b_x = tl.load(x + i_row * E + offsets, mask=mask, other=0.0).to(tl.float32)
    b_y, _, _ = layer_norm.normalise_row(b_x, mask, gamma, beta, offsets, eps, E)
    tl.store(y + i_row * E + offsets, b_y.to(y.dtype.element_ty), mask=mask)


def three_kernels(x, bias, residual, gamma, beta, eps):
    (N, E), sizes = x.shape, {"E": x.shape[1], "BLOCK": triton.next_power_of_2(x.shape[1])}
    with_bias, total, y = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    add_kernel[(N,)](x, bias, with_bias, STRIDE_Z=0, **sizes)
    add_kernel[(N,)](with_bias, residual, total, STRIDE_Z=E, **sizes)
    norm_kernel[(N,)](total, gamma, beta, y, eps, **sizes)
    return y


# %% [markdown]
# The interpreter sees every load and store, so [counting.py](counting.py) can count bytes there. Every row reads the
# bias, γ and β again, but those small vectors stay in a cache near the processor. So `distinct_bytes` counts each
# address once per kernel: at least this much has to come from, or go to, the GPU's main memory.
#
# **Prediction.** In bfloat16 a number takes 2 bytes. With N = 32 rows of E = 768, one pass over all rows is 49,152
# bytes. How many such passes do the three kernels make, reading and writing? How many does the fused one make?

# %%
N, E, eps = 32, 768, 1e-5
wide = [torch.from_numpy(rng.standard_normal((N, E))).to(torch.bfloat16) for _ in range(2)]
flat = [torch.from_numpy(rng.standard_normal(E)).to(torch.bfloat16) for _ in range(3)]
arguments = (wide[0], flat[0], wide[1], flat[1], flat[2], eps)
counts = {f.__name__: distinct_bytes(f, *arguments) for f in (three_kernels, kernels.add_layer_norm)}
one_pass = 2 * N * E
for name, count in counts.items():
    print(f"{name:14}  {count:7,} bytes, {count / one_pass:.1f} passes")

# %% [markdown]
# Seven passes against three: the first addition reads one array and writes one (2), the second reads two and writes one
# (3), LayerNorm reads one and writes one (2). The fused kernel reads x and the residual, and writes y. The rest is
# three vectors, and two float32 statistics per row, for a backward pass.

# %%
assert counts["three_kernels"] == 7 * one_pass + 3 * 2 * E
assert counts["add_layer_norm"] == 3 * one_pass + 3 * 2 * E + N * 2 * 4

# %% [markdown]
# An operation like this does little arithmetic. On a GPU its time is the time that moving its bytes takes. According to
# its data sheet, an H100 moves 3.35 TB/s, which is 3.35 bytes per picosecond. For 8,192 tokens:

# %%
vectors = 3 * 2 * E  # bias, γ and β are read once, however many rows there are
floors = {name: ((count - vectors) * 8192 / N + vectors) / 3.35e12 * 1e6 for name, count in counts.items()}
for name, microseconds in floors.items():
    print(f"{name:14}  at least {microseconds:.0f} µs")
assert 2.2 < floors["three_kernels"] / floors["add_layer_norm"] < 7 / 3

# %% [markdown]
# ## Fusing also saves a rounding
#
# **Prediction.** Both versions compute the same formula, with float32 inside each kernel. For a bfloat16 result,
# `kernels.check` allows float32 arithmetic and one rounding at the end. Do both versions pass? (`plain=True` again
# leaves out arrays that are not contiguous, which the three kernels cannot read.)

# %%
report = kernels.check(kernels.add_layer_norm, "add_layer_norm", dtypes=["bfloat16"], examples=15, plain=True)
print("add_layer_norm  within the bounds:", bool(report))
caught = None
try:
    kernels.check(three_kernels, "add_layer_norm", dtypes=["bfloat16"], examples=15, plain=True)
except kernels.Failure as failure:
    caught = failure
print("three_kernels   within the bounds:", caught is None)

# %%
assert caught is not None

# %% tags=["varies"]
print(caught)

# %% [markdown]
# Each of the separate kernels rounds to bfloat16 when it writes; the fused one keeps the sums in float32. The
# additional roundings show most in small results, where larger numbers nearly cancel: x, bias and residual, or the
# normalised number times γ, and β.
#
# Now read the project's kernel: you have seen everything in it.

# %%
for function in (layer_norm.normalise_row, layer_norm.add_layer_norm_kernel):
    print(inspect.getsource(function.fn))

# %% [markdown]
# ## What to try next
#
# * Turn the first kernel of this notebook into a LayerNorm that divides by E − 1, and check it: at which E does
#   `kernels.check` notice, and at which E would you?
# * Count the bytes of `kernels.bias_gelu`. How many passes are they? How many would they be with a separate kernel for
#   the bias?
# * Give the three kernels float32 arrays for their intermediate results (`torch.empty_like(x, dtype=torch.float32)`).
#   Do they pass now? How many bytes do they move?
# * The exercises include a LayerNorm in NumPy and a fused add + LayerNorm in Triton.
# * Next: [06_flash_attention](06_flash_attention.ipynb), where a row does not fit into registers.
