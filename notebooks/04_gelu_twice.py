# %% [markdown]
# # 04 · GELU, twice
#
# **Question.** How does a function become a GPU kernel, and how do you know that the kernel is right?
#
# You know GELU as one line of NumPy. Here you write it a second time, as your first Triton kernel, and run it without
# a GPU. Then you break it on purpose, and see which tests fail.
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

from ernie_m import kernels, reference
from ernie_m.kernels import gelu
from ernie_m.kernels.checking import verdicts
from ernie_m.kernels.checking.operations import fixed_case
from ernie_m.kernels.runtime import interpreter

# The interpreter uses NumPy, which has no bfloat16: this makes it round to bfloat16 as a GPU does.
interpreter.install()

# %% [markdown]
# ## The function
#
# GELU(x) = x Φ(x), where Φ(x) = ½(1 + erf(x/√2)) is the probability that a standard normal variable is below x.
# For large x it is nearly x, for very negative x nearly 0. `ernie_m.reference` has it in NumPy.

# %%
points = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
for x, y in zip(points, reference.gelu(points), strict=True):
    print(f"gelu({x:4.1f}) = {y:8.3g}")

line = np.linspace(-5, 3, 400)
figure, axes = plt.subplots(figsize=(4.5, 2.6), dpi=80)
axes.plot(line, np.maximum(line, 0), "--", color="0.6", label="max(x, 0)")
axes.plot(line, reference.gelu(line), label="gelu(x)")
axes.set_xlabel("x")
axes.set_ylabel("value")
axes.legend()
plt.show()

# %% [markdown]
# ## Programs and blocks
#
# A Triton kernel is a function that runs many times in parallel. Each run is called a **program**. All programs get the
# same arguments and differ only in their number, `tl.program_id(0)`. From this number a program works out which part of
# the data it processes: a **block**, whose size is a power of two and known when the kernel is compiled
# (`tl.constexpr`).
#
# An array argument arrives as a **pointer**, the address of its first number. `pointer + offsets` is a whole block of
# addresses; `tl.load` reads from them, `tl.store` writes to them.
#
# **Prediction.** In the kernel below, each program writes its number to its block. There are 3 programs with blocks of
# 4, and the array has room for 12 numbers. Write down the 12 numbers before you run it.


# %%
@triton.jit
def number_kernel(out, BLOCK: tl.constexpr):
    i_program = tl.program_id(0)
    offsets = i_program * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, i_program)

out = torch.full((12,), -1, dtype=torch.int32)
# The grid, that is how many programs to run, is in square brackets; the arguments are in parentheses.
number_kernel[(3,)](out, BLOCK=4)
print(out.tolist())

# %%
assert out.tolist() == [0] * 4 + [1] * 4 + [2] * 4

# %% [markdown]
# ## Masks
#
# An array of 10 numbers also needs 3 blocks of 4, but now the last program has two offsets too many, 10 and 11. Nothing
# stops it from writing there: a pointer does not know where its array ends. On a GPU this overwrites whatever comes
# after the array, usually without an error.
#
# The array below is the first 10 of 12 numbers; the last two stand for memory that belongs to something else.
#
# **Prediction.** How many of the last two survive without a mask, and how many with one?

# %%
@triton.jit
def masked_kernel(out, n, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i_program = tl.program_id(0)
    offsets = i_program * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(out + offsets, i_program, mask=offsets < n)
    else:
        tl.store(out + offsets, i_program)

survivors = {}
for masked in (False, True):
    memory = torch.full((12,), -1, dtype=torch.int32)
    masked_kernel[(triton.cdiv(10, 4),)](memory, 10, BLOCK=4, MASKED=masked)
    survivors[masked] = int((memory[10:] == -1).sum())
    print(f"masked={masked!s:5}  {memory.tolist()}  survivors: {survivors[masked]}")

# %% [markdown]
# This is the first rule of kernels: **every load and every store has a mask, unless the block is known to be full.**
# A load with a mask also takes `other=`, the value to use where nothing is read.

# %%
assert survivors == {False: 0, True: 2}

# %% [markdown]
# ## The second GELU
#
# Now the kernel. Three things are new:
#
# * `tl.load` reads a block of x, with the mask;
# * `.to(tl.float32)`: the arithmetic is float32, whatever the format of x;
# * `.to(y.dtype.element_ty)`: the result is rounded **once**, to the format of `y`, when it is stored.

# %%
@triton.jit
def my_gelu_kernel(x, y, n, BLOCK: tl.constexpr, FORM: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    b_x = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if FORM == "tanh":
        t = 1.5957691216057308 * (b_x + 0.044715 * b_x * b_x * b_x)
        b_y = b_x / (1.0 + tl.exp(-t))
    else:
        b_y = 0.5 * b_x * (1.0 + tl.math.erf(b_x * 0.7071067811865476))
    if FORM == "truncated":
        # Clearing the lower 16 bits of the float32 leaves a bfloat16, rounded towards zero.
        b_y = (b_y.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    tl.store(y + offsets, b_y.to(y.dtype.element_ty), mask=mask)


def my_gelu(x: torch.Tensor, form: str = "exact") -> torch.Tensor:
    """Launch the kernel. This part is ordinary Python and runs on the host."""
    y = torch.empty_like(x)
    my_gelu_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), BLOCK=1024, FORM=form)
    return y


x = torch.linspace(-6, 6, 5001)
error = np.abs(my_gelu(x).double().numpy() - reference.gelu(x.double().numpy()))
print(f"programs: {triton.cdiv(x.numel(), 1024)}; errors below 1e-6: {(error < 1e-6).all()}")
assert (error < 1e-6).all()

# %% [markdown]
# `FORM` can select two faults, which we come to below; leave it at "exact" for now. It is a `constexpr`, so each `if`
# is decided when the kernel is compiled, and the branches not taken do not exist in the machine code.
#
# ## bfloat16
#
# Models run in bfloat16, which has 8 significant bits where float32 has 24. The relative error of rounding to nearest
# is at most u = 2⁻⁸ = 0.39 %. (Notebook 03 has more on u.)
#
# **Prediction.** x and y are stored in bfloat16; the arithmetic in between is float32. What is the largest relative
# error of y, compared with the exact GELU of the same bfloat16 x: about ½ u, u, 2 u, or much more? Consider x from -4
# to 4 first.

# %%
x16 = torch.linspace(-4, 4, 4001).to(torch.bfloat16).unique()
exact = reference.gelu(x16.double().numpy())
got = my_gelu(x16).double().numpy()
nonzero = exact != 0
relative = np.abs(got - exact)[nonzero] / np.abs(exact[nonzero])
u = 2.0**-8
print(f"largest relative error: {relative.max() / u:.1f} u")

figure, axes = plt.subplots(figsize=(6, 2.6), dpi=80)
axes.plot(x16.double()[torch.from_numpy(nonzero)], relative / u, ".", markersize=2)
axes.axhline(1, color="tab:red", label="u")
axes.set_xlabel("x")
axes.set_ylabel("relative error / u")
axes.legend(loc="lower left")
plt.show()

# %% [markdown]
# One rounding costs at most one u. On the right the error shrinks, because GELU(x) is nearly x there, and x is already
# a bfloat16 number.

# %%
assert 0.9 * u < relative.max() <= 1.001 * u

# %% [markdown]
# ## The tail
#
# Further left something else happens. At x = -5 the exact value is x · 2.9 · 10⁻⁷, and the kernel computes 1 + erf,
# where erf is almost -1. Subtracting nearly equal numbers loses their digits (notebook 03 again).
#
# **Prediction.** At x = -5.5, what is the relative error of `my_gelu` in float32? And that of the project's kernel,
# `kernels.bias_gelu`, which computes the small tail directly?

# %%
tail = torch.linspace(-7, -2, 201)
truth = reference.gelu(tail.double().numpy())
results = {"my_gelu": my_gelu(tail), "bias_gelu": kernels.bias_gelu(tail, torch.zeros(201))}
relative = {name: np.abs(y.double().numpy() - truth) / np.abs(truth) for name, y in results.items()}
at = int((tail + 5.5).abs().argmin())
print("my_gelu:   relative error at -5.5 above 10 %:", relative["my_gelu"][at] > 0.1)
print("bias_gelu: relative error below 1e-5 at every point:", relative["bias_gelu"].max() < 1e-5)

figure, axes = plt.subplots(figsize=(5, 2.6), dpi=80)
for name, values in relative.items():
    axes.semilogy(tail, np.maximum(values, 1e-9), label=name)
axes.set_xlabel("x")
axes.set_ylabel("relative error")
axes.legend()
plt.show()

# %% [markdown]
# Float32 numbers just below 1 are 2⁻²⁴ = 6 · 10⁻⁸ apart. So whichever library computes erf, and however well, 1 + erf
# can only be a multiple of 6 · 10⁻⁸. At -5.5 it should be 3.8 · 10⁻⁸: the nearest multiple is off by 57 %, and the one
# below is 0. Is that a fault? The absolute error is small, below 10⁻⁶ |x|. The project's bound for any GELU is
#
# $$|\text{got} - \text{exact}| \le u\,|\text{exact}| + 8 \cdot 2^{-24}\,|x|,$$
#
# that is one rounding to the format, plus the error of float32 arithmetic with an accurate erf. It is derived (see
# [kernels/checking/bounds.py](../kernels/checking/bounds.py)), not picked. `my_gelu` is within it in the tail too; the
# project's kernel is simply better.

# %%
assert relative["my_gelu"][at] > 0.1 and relative["bias_gelu"].max() < 1e-5

# %% [markdown]
# ## Check it
#
# `kernels.check` draws awkward inputs (sizes around block sizes, magnitudes from 10⁻³ to 10³) and puts guards around
# all arrays, which reveal a missing mask. It compares the error of every number with that bound. Then, on fixed random
# data, it compares averages of the errors with bounds of their own.
#
# It asks for more than `my_gelu` promises: `tail=False` does not ask for the digits in the tail, and `plain=True`
# leaves out arrays that are not contiguous, NaN and infinity, and offsets that no longer fit in int32.

# %%
report = kernels.check(my_gelu, "gelu", examples=20, tail=False, plain=True)
print("my_gelu computes GELU within all bounds:", bool(report), "in", ", ".join(report.dtypes))

# %% tags=["varies"]
print(report)

# %% [markdown]
# ## A fault that the usual tests miss
#
# Many models use a GELU that approximates erf by tanh. It differs by at most 0.0005. Suppose that somebody copies it
# from such a model. Or suppose that a kernel drops the low bits of its result instead of rounding. (That happens:
# Triton's own interpreter does so in bfloat16, which is why we called `interpreter.install()`.)
#
# Three well-known kernel libraries use these tests for bfloat16:
#
# * **tolerance**, as Liger-Kernel tests its softmax: |got − exact| ≤ 0.05 + 0.05 |exact|
# * **2x**, as FlashAttention does: the largest error is at most twice that of torch's own operation in bfloat16
# * **rms**, as flash-linear-attention does: the root mean square of the errors is below 0.005 times that of the numbers
#
# The fourth test is ours: `verdicts.judge`, with the bounds from above.
#
# **Prediction.** Two faults and four tests make eight outcomes. How many of them are "caught"?

# %%
case = fixed_case("gelu", "bfloat16")
data = torch.from_numpy(case.inputs["x"]).to(torch.bfloat16)
exact = case.expected.exact
torch_error = np.abs(torch.nn.functional.gelu(data).double().numpy() - exact).max()


def passing(form: str) -> dict[str, bool]:
    """Which of the four tests pass."""
    got = my_gelu(data, form).double().numpy()
    error = np.abs(got - exact)
    rms = np.sqrt(np.square(error).mean() / np.square(exact).mean())
    return {
        "tolerance": bool((error <= 0.05 + 0.05 * np.abs(exact)).all()),
        "2x": bool(error.max() <= 2 * torch_error),
        "rms": bool(rms < 0.005),
        "ours": all(verdict.holds for verdict in verdicts.judge(got, case.expected, statistical=True)),
    }

found = {form: passing(form) for form in ("exact", "tanh", "truncated")}
print(f"{'':10}", *(f"{test:>10}" for test in found["exact"]))
for form, passed in found.items():
    print(f"{form:10}", *(f"{'passes' if ok else 'caught':>10}" for ok in passed.values()))

# %% [markdown]
# Three of eight. The wide tolerance and the wide rms miss both faults, and the comparison with torch misses the wrong
# function. A picked tolerance has to be wide enough for every kernel its author has seen; a derived bound says how
# accurate a good kernel is.

# %%
assert all(found["exact"].values())
assert found["tanh"] == {"tolerance": True, "2x": True, "rms": True, "ours": False}
assert found["truncated"] == {"tolerance": True, "2x": False, "rms": True, "ours": False}

# %% [markdown]
# Where does each fault show?

# %%
order = np.argsort(case.inputs["x"], axis=None)
sorted_x = case.inputs["x"].ravel()[order]
figure, both = plt.subplots(1, 2, figsize=(8, 2.8), dpi=80, sharey=True)
for axes, fault in zip(both, ("tanh", "truncated"), strict=True):
    signed = (my_gelu(data, fault).double().numpy() - exact) * np.sign(exact) / case.expected.limit
    axes.plot(sorted_x, signed.ravel()[order], ".", markersize=1)
    axes.axhspan(-1, 1, color="tab:green", alpha=0.15)
    axes.set_ylim(-3, 3)
    axes.set_xlabel("x")
    axes.set_title(fault)
both[0].set_ylabel("error / bound (positive: away from 0)")
plt.show()

# %% [markdown]
# The green band is what rounding explains. The tanh form leaves it for negative x (its worst point is far outside the
# figure), where GELU is small and an absolute tolerance notices nothing. Truncation is wrong by up to a whole step,
# always towards 0: single numbers reach -2, and the mean of all errors is not near 0, which a separate bound detects.
#
# `kernels.check` does not only report that a kernel is wrong. It looks for the smallest input that shows it.


# %%
def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return my_gelu(x, "tanh")


try:
    kernels.check(tanh_gelu, "gelu", dtypes=["float32"], examples=20)
except kernels.Failure as failure:
    caught = failure
print("caught by the bound:", caught.verdict.bound)
print("numbers in the smallest failing input:", caught.inputs["x"].size)
assert caught.inputs["x"].size == 1

# %% tags=["varies"]
print(caught)

# %% [markdown]
# ## The project's kernel
#
# You can read it now. In the model a bias is added before every GELU. The kernel does both, so that x is read once and
# not twice. Its blocks have two dimensions, so that a program reads its part of the bias once for several rows.

# %%
print(inspect.getsource(gelu.bias_gelu_kernel.fn))

# %% [markdown]
# ## What to try next
#
# * Copy `my_gelu_kernel` and `my_gelu` into a new cell, under new names. Leave the mask out of the `tl.store`, and give
#   the copy to `kernels.check`. What does it report? (Only to `kernels.check`, which stops it in time. Elsewhere it
#   would overwrite memory that belongs to something else, and Python may crash.)
# * Multiply the result by 1.003. Which of the four tests fail, and which of our bounds?
# * Read [kernels/gelu.py](../kernels/gelu.py) from its docstring on: why does it have its own polynomial for the error
#   function?
# * In the [exercises](exercises/03_triton.ipynb) you write a Triton GELU from its specification.
# * Next: [05_layer_norm_and_reductions](05_layer_norm_and_reductions.ipynb), where a program needs all the numbers of a
#   row before it can write one.
