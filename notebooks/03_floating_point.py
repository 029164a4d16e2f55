# %% [markdown]
# # 03 · Floating point
#
# How wrong may a correct program be? Nearly every result in a computer is rounded, so two correct programs rarely
# return the same digits. To tell a wrong program from a correct one, you need to know how large rounding errors can be.
# That can be computed.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.

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
# 2¹⁻ᵖ apart, between 2 and 4 twice as far, and so on. Rounding to nearest moves x by at most half that distance, which
# is at most u |x|, with u = 2⁻ᵖ. This u is the *unit roundoff* of the format.
#
# **Prediction.** bfloat16 has p = 8. By what percentage can rounding change a number?

# %%
for format in FORMATS.values():
    u_in_words = f"u = {format.u:.2g} = {100 * format.u:.2g}%"
    print(f"{format.name:9} p = {format.bits:2}, {u_in_words}, largest number {format.largest:.2g}")

x = np.linspace(1, 8, 20001)
error = np.abs(FORMATS["bfloat16"].round(x) - x) / x
figure, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
ax.plot(x, error, linewidth=0.4)
ax.axhline(FORMATS["bfloat16"].u, color="black", linestyle="--", label="bound: u = 1/256")
ax.set(xlabel="x", ylabel="relative error", title="Rounding to bfloat16", ylim=(0, 0.0052))
ax.legend(loc="upper right")
plt.show()

largest = error.max() / FORMATS["bfloat16"].u
print(f"every error is within the bound: {largest <= 1}; the largest exceeds 98% of it: {largest > 0.98}")

# %% [markdown]
# The largest errors come close to the bound just above each power of two, and to half of it just below. The bound is
# not a guess: it holds for every number that is not too small or too large for the format. Nor is it too wide: 1 + u
# is rounded to 1, with a relative error of u / (1 + u).

# %%
assert 0.98 < largest <= 1
assert np.float32(1) + np.float32(u) == 1  # halfway to the next number: rounds back

# %% [markdown]
# ## 2. The dtype trap of NumPy 2
#
# Attention divides by √8. NumPy has `np.sqrt(8)`, Python has `math.sqrt(8)`. Both return the same number.
#
# **Prediction.** `x` is an array of float32. What is the dtype of `x / np.sqrt(8)`, and of `x / math.sqrt(8)`?

# %% tags=["varies"]
x = np.ones(4, np.float32)
print("NumPy", np.__version__)
print("x / math.sqrt(8):", (x / math.sqrt(8)).dtype)
print("x / np.sqrt(8):  ", (x / np.sqrt(8)).dtype)

if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    assert (x / np.sqrt(8)).dtype == np.float64

# %% [markdown]
# `math.sqrt(8)` is a Python float, which adopts the array's dtype. `np.sqrt(8)` is a `np.float64`, and since NumPy 2
# that makes the whole result float64: twice the memory, about half the speed, and a "float32" program that no longer
# computes in float32. NumPy 1 returned float32 in both cases. There is no warning. The remedy is to use `math` for
# scalars, and to test dtypes.

# %%
assert (x / math.sqrt(8)).dtype == np.float32

# %% [markdown]
# ## 3. The order of a sum
#
# Each addition rounds. The error of a sum depends on how many additions each number passes through.
#
# **Prediction.** We add 0.1 to a running total, a million times, in float32. What is the total? By what percentage is
# it wrong?

# %%
tenths = np.full(1_000_000, 0.1, np.float32)
running = np.cumsum(tenths)[-1]  # one running total, from left to right
pairwise = np.sum(tenths)  # NumPy sums blocks, then blocks of blocks
print(f"running total: wrong by {abs(float(running) - 100_000) / 100_000:.2%}")
print("blocks: wrong by less than 0.001%:", abs(float(pairwise) - 100_000) < 1)
large, one = np.float32(1e8), np.float32(1)
print("(1e8 + 1) - 1e8 =", (large + one) - large, "  1 + (1e8 - 1e8) =", one + (large - large))

# %% [markdown]
# Near 100,000 the float32 numbers are 1/128 apart. Adding 0.1 to such a total rounds by up to 1/256, in the same
# direction for long stretches. With blocks, all partial sums are small until the end.

# %%
assert abs(running - 100_000) > 500
assert abs(pairwise - 100_000) < 1

# %% [markdown]
# There is an error bound for any order. A number that passes through c additions is rounded c times, so |error| ≤ c u
# Σ|x|, plus negligible terms in u². For a running total c is at most n - 1. For blocks of blocks it grows only with the
# logarithm: NumPy halves the array until at most 128 numbers are left, where c is at most 25. Together that is at most
# log₂ n + 19.
#
# **Prediction.** Take random numbers of both signs, n from 100 to a million. Do the errors come close to the bounds?

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
loose = results[2, -1] > 100 * results[0, -1]
print("n = 1,000,000: the running total's bound is more than 100 times its error:", loose)

# %% [markdown]
# The errors stay far below the bounds: numbers are rounded up as often as down, and the roundings cancel. A bound must
# allow for the worst case, so that it never fails a correct program. For random data the project also bounds averages,
# which is much sharper ([kernels/checking/verdicts.py](../kernels/checking/verdicts.py)).

# %%
assert (results[:2] <= results[2:]).all()

# %% [markdown]
# ## 4. Cancellation in the tail of GELU
#
# The activation is gelu(x) = x Φ(x), with Φ the normal distribution function. Textbooks write it as ½x(1 + erf(x/√2)).
#
# **Prediction.** The exact value at x = -6 is -5.92e-09. What does the textbook formula return in float32, whose
# smallest normal number is about 1e-38?

# %%
def textbook(x: np.ndarray) -> np.ndarray:
    """The usual formula, in the dtype of x. `erf` is accurate: it is not the cause."""
    half, one, root = (x.dtype.type(c) for c in (0.5, 1, math.sqrt(2)))
    return half * x * (one + erf(x / root))

for value in (-2, -4, -5, -6):
    at = np.array([value], np.float32)
    exact = gelu(at.astype(np.float64))[0]
    lost = abs(textbook(at)[0] - exact) / abs(exact)
    print(f"x = {value}: exact {exact:.3g}; textbook: error above 1%: {lost > 0.01}, no digit right: {lost == 1}")

# %% [markdown]
# It returns 0. At x = -6, erf(x/√2) is -0.999999998, and the nearest float32 is -1. Then 1 + (-1) = 0. The addition is
# exact: the information was lost before, when erf was rounded, with an error of less than u. Subtracting two nearly
# equal numbers has turned a small absolute error into a large relative one. That is *cancellation*.

# %%
assert textbook(np.array([-6], np.float32))[0] == 0
assert textbook(np.array([-6], np.float64))[0] != 0

# %% [markdown]
# The reference computes max(x, 0) − |x| Φ(−|x|), with a function for the tail itself. For x < 0 nothing cancels.
#
# **Prediction.** Each formula has a bound, derived from its own operations: 8 u |x| for the textbook, and (10 + x²/2)
# u |gelu(x)| for the reference at x < 0. Which bound is smaller at x = -5, and by what factor?

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
    title="GELU in float32: at a relative error of 1 no digit is right",
    ylim=(1e-10, 1e4),
)
ax.legend(loc="upper right", markerscale=8)
plt.show()

at = np.argmin(np.abs(x + 5))
print(f"at x = -5 the textbook's bound is {limits[0][at] / limits[1][at]:.2g} times the reference's")
print("textbook within its bound: ", (errors[0] <= limits[0]).all())
print("reference within its bound:", (errors[1] <= limits[1]).all())

# %% [markdown]
# Both formulas stay within *their* bounds, so neither program is wrong. But the textbook's relative bound grows past 1,
# where no digit is right, and the reference's does not. A bound belongs to a way of computing. Comparing bounds tells
# you which way is better before you run anything.

# %%
assert all((error <= limit).all() for error, limit in zip(errors, limits, strict=True))

# %% [markdown]
# ## 5. Why tolerances should be computed, not picked
#
# Tests often call `allclose(got, expected, rtol, atol)` with numbers that somebody adjusted until the test passed, or
# with a library's defaults. Those of `torch.testing.assert_close` are rtol = 1.3e-6 and atol = 1e-5 for float32, and
# rtol = 1.6e-2 and atol = 1e-5 for bfloat16.
#
# **Prediction.** Which of these faults does `allclose` find?
#
# 1. float32: everything below x = -5 is set to 0.
# 2. bfloat16: every result is rounded towards 0 instead of to nearest.
# 3. bfloat16: every result is 1% too large.

# %%
grid = FORMATS["bfloat16"].round(np.linspace(-9, 9, 20_000))  # exact in both formats
truth = gelu(grid)


def truncate(exact: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 number that is not larger in magnitude than the exact one."""
    near = FORMATS["bfloat16"].round(exact)
    step = np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))) - 7)
    return np.where(np.abs(near) > np.abs(exact), near - np.copysign(step, near), near)

to_bfloat16 = FORMATS["bfloat16"].round
cases = {
    "float32, correct": ("float32", FORMATS["float32"].round(truth)),
    "float32, no tail": ("float32", FORMATS["float32"].round(np.where(grid < -5, 0, truth))),
    "bfloat16, correct": ("bfloat16", to_bfloat16(truth)),
    "bfloat16, towards 0": ("bfloat16", truncate(truth)),
    "bfloat16, 1% too large": ("bfloat16", to_bfloat16(1.01 * truth)),
}
found = {}
print(f"{'':24}allclose  reference's bound")
for name, (dtype, got) in cases.items():
    passes = np.allclose(got, truth, rtol=1.3e-6 if dtype == "float32" else 1.6e-2, atol=1e-5)
    # One rounding to the format, plus the error in float32 before it.
    limit = FORMATS[dtype].u * np.abs(truth) + (10 + grid**2 / 2) * u * np.abs(truth) + FORMATS[dtype].smallest
    found[name] = passes, bool((np.abs(got - truth) <= limit).all())
    print(f"{name:24}{'passes' if found[name][0] else 'fails':10}{'passes' if found[name][1] else 'fails'}")

# %% [markdown]
# These tolerances find none of the three. The `atol` of 1e-5 is larger than the whole tail. And the `rtol` of
# 1.6e-2 is four times the largest error of rounding to bfloat16, so a fault of 1% goes unnoticed. The computed bound
# passes both correct results and finds all three faults.

# %%
assert all(passed == name.endswith("correct") for name, (_, passed) in found.items())

# %% [markdown]
# Picking smaller numbers does not help either.
#
# **Prediction.** We require rtol = 1e-6, without atol, of a sum of products in float32. Does a correct program pass?

# %%
a, b = rng.standard_normal((2, 500, 1000)).astype(np.float32)
got = np.array([np.sum(row) for row in a * b], np.float64)
exact = (a.astype(np.float64) * b).sum(axis=1)
size = np.abs(a.astype(np.float64) * b).sum(axis=1)
limit = bounds.chain(1000) * u * size + u * size  # the additions, and one rounding of each product
print("passes with rtol = 1e-6:", np.allclose(got, exact, rtol=1e-6, atol=0))
print("passes with the bound:  ", (np.abs(got - exact) <= limit).all())

# %% [markdown]
# It fails, because some of the 500 sums are close to 0: the products cancel, and their rounding errors do not. The
# bound allows for this, because it is built from Σ|ab|, not |Σab|. No fixed pair of numbers is right for both cases: a
# pair that fits this sum is too loose for the tail of GELU. So the project computes its tolerances from the inputs,
# number by number ([kernels/checking/bounds.py](../kernels/checking/bounds.py)).

# %%
assert not np.allclose(got, exact, rtol=1e-6, atol=0)
assert (np.abs(got - exact) <= limit).all()

# %% [markdown]
# ## What to try next
#
# - Compute the variance of `1000 + rng.standard_normal(768)` in float32 as mean(x²) − mean(x)², and as mean((x −
#   mean(x))²). How many digits of each are right? Which one does [reference/layer_norm.py](../reference/layer_norm.py)
#   use?
# - In section 4, replace float32 by float64. Where does the textbook formula reach an error of 1 now?
# - In section 5, find an `rtol` for bfloat16 that passes the correct result and finds rounding towards 0. What is it,
#   in units of u?
# - Read the docstring of [kernels/checking/verdicts.py](../kernels/checking/verdicts.py): it explains three bounds, and
#   which faults each of them finds.
# - Next: in [04_gelu_twice](04_gelu_twice.ipynb) GELU becomes a GPU kernel, and is tested with such a bound.
