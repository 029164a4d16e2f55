# %% [markdown]
# # 03 · Floating point
#
# How wrong may a correct program be? Every number in a computer is rounded, so two correct programs seldom give the
# same digits. To tell a wrong program from a rounded one you need to know how large an honest error can be. That can
# be computed.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"` and `jupyter lab notebooks`.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from ernie_m.kernels.checking import bounds
from ernie_m.kernels.checking.formats import FORMATS
from ernie_m.reference import erf, gelu

plt.rcParams["figure.dpi"] = 80
u = 2.0**-24  # float32's unit roundoff

# %% [markdown]
# ## 1. Unit roundoff
#
# A floating-point number is m · 2ᵉ, where m has a fixed number of binary digits, p. So between 1 and 2 the numbers are
# 2¹⁻ᵖ apart, between 2 and 4 twice as far, and so on. Rounding to the nearest number moves x by at most half that
# distance: by at most u |x|, with u = 2⁻ᵖ. This u is the *unit roundoff* of the format.
#
# **Prediction.** bfloat16 has p = 8. By how many per cent can rounding change a number?

# %%
for format in FORMATS.values():
    print(
        f"{format.name:9} p = {format.bits:2}, u = {format.u:.2g} = {format.u:.2%}, largest number {format.largest:.2g}"
    )

x = np.linspace(1, 8, 20001)
error = np.abs(FORMATS["bfloat16"].round(x) - x) / x
figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.plot(x, error, linewidth=0.4)
ax.axhline(FORMATS["bfloat16"].u, color="black", linestyle="--", label="bound: u = 1/256")
ax.set(xlabel="x", ylabel="relative error", title="Rounding to bfloat16", ylim=(0, 0.0052))
ax.legend(loc="upper right")
plt.show()

print(
    "within the bound:",
    (error <= FORMATS["bfloat16"].u).all(),
    "  nearly reached:",
    error.max() > 0.98 * FORMATS["bfloat16"].u,
)

assert (error <= FORMATS["bfloat16"].u).all()
assert np.float32(1) + np.float32(u) == 1  # halfway to the next number: rounds back

# %% [markdown]
# The error is close to the bound just above each power of two, and half of it just below. The bound is no guess: it
# holds for every number that is not too small or too large for the format, and some numbers reach it.
#
# ## 2. The dtype trap of NumPy 2
#
# Attention divides by √8. NumPy offers `np.sqrt(8)`, Python offers `math.sqrt(8)`. Both give the same number.
#
# **Prediction.** `x` is an array of float32. What is the dtype of `x / np.sqrt(8)`, and of `x / math.sqrt(8)`?

# %% tags=["varies"]
x = np.ones(4, np.float32)
print("NumPy", np.__version__)
print("x / math.sqrt(8):", (x / math.sqrt(8)).dtype)
print("x / np.sqrt(8):  ", (x / np.sqrt(8)).dtype)

assert (x / math.sqrt(8)).dtype == np.float32
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    assert (x / np.sqrt(8)).dtype == np.float64

# %% [markdown]
# `math.sqrt(8)` is a Python float, which takes on the array's dtype. `np.sqrt(8)` is a `np.float64`, and from NumPy 2
# on that makes the whole result float64: twice the memory, about half the speed, and a "float32" program whose digits
# are not those of float32. NumPy 1 gave float32 in both cases. Nothing warns you. The remedy: `math` for scalars, and
# tests that look at the dtype.
#
# ## 3. The order of a sum
#
# Each addition rounds. The error of a sum depends on how many additions a number passes through.
#
# **Prediction.** We add 0.1 to a running total, a million times, in float32. What is the total? Off by how many per
# cent?

# %%
tenths = np.full(1_000_000, 0.1, np.float32)
running = np.cumsum(tenths)[-1]  # one total, from left to right
pairwise = np.sum(tenths)  # NumPy adds blocks, then blocks of blocks
print(f"running total: off by {abs(float(running) - 100_000) / 100_000:.2%}")
print("blocks: off by less than 0.001%:", abs(float(pairwise) - 100_000) < 1)
large, one = np.float32(1e8), np.float32(1)
print("(1e8 + 1) - 1e8 =", (large + one) - large, "  1 + (1e8 - 1e8) =", one + (large - large))

assert abs(running - 100_000) > 500
assert abs(pairwise - 100_000) < 1

# %% [markdown]
# Near 100,000 the float32 numbers are 1/128 apart. Adding 0.1 to such a total rounds by up to 1/256, always in the
# same direction for a while. In blocks all partial sums are small until the end.
#
# An error bound for any order: a number that passes through c additions is rounded c times, so |error| ≤ c u Σ|x| (and
# terms in u², which are too small to see). For a running total c is up to n - 1. For blocks of blocks it is about log₂
# n, plus the length of the first block's chain, 16 + 3 in NumPy.
#
# **Prediction.** Random numbers, some positive, some negative, n from 100 to a million. Do the errors come close to
# the bounds?

# %%
rng = np.random.default_rng(0)
sizes = np.unique(np.logspace(2, 6, 25).astype(int))
results = []
for n in sizes:
    x = rng.standard_normal(n).astype(np.float32)
    exact, size = math.fsum(x.tolist()), np.abs(x, dtype=np.float64).sum()
    errors = abs(float(np.cumsum(x)[-1]) - exact) / size, abs(float(np.sum(x)) - exact) / size
    results.append([*errors, (n - 1) * u, (math.ceil(math.log2(n)) + 19) * u])
results = np.array(results).T

figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
for row, style, label in zip(
    results, ("C0o", "C1s", "C0--", "C1--"), ("running", "blocks", "bound: n − 1", "bound: log₂ n + 19"), strict=True
):
    ax.loglog(sizes, row / u, style, label=label, markersize=4)
ax.set(xlabel="n", ylabel="error / (u Σ|x|)", title="Sums of n random float32 numbers")
ax.legend(ncols=2)
plt.show()

print("every error is within its bound:", (results[:2] <= results[2:]).all())
print(
    "the running total's bound is at least 100 times too large at n = 1,000,000:", 100 * results[0, -1] < results[2, -1]
)

assert (results[:2] <= results[2:]).all()

# %% [markdown]
# The errors stay far below the bounds: roundings go up as often as down, and cancel. A bound must allow for the worst
# case. That is the price of a bound that never fails a correct program. Where random data can be assumed, the project
# also uses averages, which are much sharper (`kernels/judge.py`).
#
# ## 4. Cancellation in the tail of GELU
#
# The activation is gelu(x) = x Φ(x), with Φ the normal distribution function. Textbooks write it as ½x(1 + erf(x/√2)).
#
# **Prediction.** The exact value at x = -6 is -5.92e-09. What does the textbook formula give in float32, where numbers
# down to 1e-38 exist?


# %%
def textbook(x: np.ndarray) -> np.ndarray:
    """The usual formula, in the dtype of x. `erf` is accurate to a rounding: the fault is not there."""
    half, one, root = (x.dtype.type(c) for c in (0.5, 1, math.sqrt(2)))
    return half * x * (one + erf(x / root))


for value in (-2, -4, -5, -6):
    at = np.array([value], np.float32)
    exact = gelu(at.astype(np.float64))[0]
    lost = abs(textbook(at)[0] - exact) / abs(exact)
    print(f"x = {value}: exact {exact:.3g}, textbook wrong by more than 1%: {lost > 0.01}, by 100%: {lost == 1}")

assert textbook(np.array([-6], np.float32))[0] == 0
assert textbook(np.array([-6], np.float64))[0] != 0

# %% [markdown]
# It gives 0. At x = -6, erf(x/√2) is -0.999999998, and the float32 nearest to it is -1. Then 1 + (-1) = 0. No rounding
# *after* erf did that: the information was lost when erf was rounded, by an error of only u. The subtraction of two
# nearly equal numbers has made a small absolute error into a large relative one. That is *cancellation*.
#
# The reference computes max(x, 0) − |x| Φ(−|x|) with a function for the tail itself, and subtracts nothing for x < 0.
#
# **Prediction.** Each formula has a bound, derived from its own operations: 8 u |x| for the textbook, and (10 + x²/2)
# u |gelu(x)| for the reference at x < 0. Which bound is smaller at x = -5, and by how much?

# %%
x = np.linspace(-9, -0.01, 20_000).astype(np.float32)
exact = gelu(x.astype(np.float64))
limits = 8 * u * np.abs(x, dtype=np.float64), (10 + x.astype(np.float64) ** 2 / 2) * u * np.abs(exact)
errors = np.abs(textbook(x) - exact), np.abs(gelu(x) - exact)

figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
for error, limit, color, label in zip(errors, limits, ("C1", "C0"), ("textbook", "reference"), strict=True):
    ax.semilogy(x, error / np.abs(exact) + 1e-10, ".", color=color, markersize=1, label=label)
    ax.semilogy(x, limit / np.abs(exact), "--", color=color, label=f"bound, {label}")
ax.axhline(1, color="black", linewidth=0.5)
ax.set(
    xlabel="x",
    ylabel="relative error",
    title="GELU in float32: an error of 1 means that no digit is right",
    ylim=(1e-10, 1e4),
)
ax.legend(loc="upper right", markerscale=8)
plt.show()

at = np.argmin(np.abs(x + 5))
print(f"at x = -5 the textbook's bound is {limits[0][at] / limits[1][at]:.2g} times the reference's")
print("textbook within its bound: ", (errors[0] <= limits[0]).all())
print("reference within its bound:", (errors[1] <= limits[1]).all())

assert all((error <= limit).all() for error, limit in zip(errors, limits, strict=True))

# %% [markdown]
# Both formulas keep to *their* bounds. Neither is a wrong program. But the bound of one grows past 1, where no digit
# is right, and that of the other does not. A bound belongs to a way of computing, and comparing bounds tells you which
# way is better before you run anything.
#
# ## 5. Why a tolerance is computed, and not picked
#
# Tests often say `allclose(got, expected, rtol, atol)` with numbers that somebody picked until the test passed. A
# usual pair for float32 is rtol = 1.3e-6, atol = 1e-5, and for bfloat16 rtol = 1.6e-2, atol = 1e-5.
#
# **Prediction.** Which of these faults does `allclose` find?
#
# 1. float32: everything below x = -5 is set to 0.
# 2. bfloat16: every result is rounded toward 0 in place of to the nearest.
# 3. bfloat16: every result is 1% too large.

# %%
grid = FORMATS["bfloat16"].round(np.linspace(-9, 9, 20_000))  # inputs that both formats have
truth = gelu(grid)


def cut_off(exact: np.ndarray) -> np.ndarray:
    """The nearest number of bfloat16 that is no larger in magnitude than the exact one."""
    near = FORMATS["bfloat16"].round(exact)
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))) - 7)
    return np.where(np.abs(near) > np.abs(exact), near - np.copysign(step, near), near)


half = FORMATS["bfloat16"].round
cases = {
    "float32, correct": ("float32", FORMATS["float32"].round(truth)),
    "float32, no tail": ("float32", FORMATS["float32"].round(np.where(grid < -5, 0, truth))),
    "bfloat16, correct": ("bfloat16", half(truth)),
    "bfloat16, toward 0": ("bfloat16", cut_off(truth)),
    "bfloat16, 1% too large": ("bfloat16", half(1.01 * truth)),
}
found = {}
print(f"{'':24}allclose  reference's bound")
for name, (kind, got) in cases.items():
    passes = np.allclose(got, truth, rtol=1.3e-6 if kind == "float32" else 1.6e-2, atol=1e-5)
    # One rounding to the format, and what float32 may be off before that.
    limit = FORMATS[kind].u * np.abs(truth) + (10 + grid**2 / 2) * u * np.abs(truth) + FORMATS[kind].smallest
    found[name] = passes, bool((np.abs(got - truth) <= limit).all())
    print(f"{name:24}{'passes' if found[name][0] else 'fails':10}{'passes' if found[name][1] else 'fails'}")

assert all(passed == name.endswith("correct") for name, (_, passed) in found.items())

# %% [markdown]
# The picked tolerances find none of the three. The reason is the `atol`: 1e-5 is larger than the whole tail. And
# 1.6e-2 is four times what rounding to bfloat16 can do, so a fault of 1% hides in it. The computed bound passes both
# correct results and finds all three faults.
#
# Picking smaller numbers does not help either.
#
# **Prediction.** We demand rtol = 1e-5 and no atol from a sum of products in float32. Does a correct program pass?

# %%
a, b = rng.standard_normal((2, 500, 1000)).astype(np.float32)
got = np.array([np.sum(row) for row in a * b], np.float64)
exact = (a.astype(np.float64) * b).sum(axis=1)
size = np.abs(a.astype(np.float64) * b).sum(axis=1)
limit = bounds.chain(1000) * u * size + u * size  # the additions, and one rounding of each product
print("rtol = 1e-5 passes:", np.allclose(got, exact, rtol=1e-5, atol=0))
print("the bound passes:  ", (np.abs(got - exact) <= limit).all())

assert not np.allclose(got, exact, rtol=1e-5, atol=0)
assert (np.abs(got - exact) <= limit).all()

# %% [markdown]
# It fails, since among 500 sums some come out close to 0: the products cancel, and their roundings do not. The bound
# knows, because it is made of Σ|ab|, not of |Σab|. One fixed pair of numbers cannot be right for both: it is too loose
# in the tail of GELU, and too tight here. So the project's tolerances are computed, for each number, from the inputs
# ([kernels/bounds.py](../kernels/bounds.py)).
#
# ## What to try next
#
# - Compute the variance of `1000 + rng.standard_normal(768)` in float32 as mean(x²) − mean(x)², and as mean((x −
#   mean(x))²). How many digits of each are right? Which one does [reference/layer_norm.py](../reference/layer_norm.py)
#   use?
# - In section 4, replace float32 by float64. Where does the textbook formula reach an error of 1 now?
# - In section 5, find an `rtol` for bfloat16 that passes the correct result and finds rounding toward 0. What is it,
#   in units of u?
# - Read the docstring of [kernels/judge.py](../kernels/judge.py): three bounds, and which faults each of them finds.
