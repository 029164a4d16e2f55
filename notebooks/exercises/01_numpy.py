# %% [markdown]
# # Exercises 1 · NumPy
#
# Four small functions of the model, in NumPy. You write each from its specification. One call then checks it, on inputs
# that are drawn to find what is wrong. If something is, you see the smallest input that shows it.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"` and `jupyter lab notebooks`.
#
# Fill in a stub, run its cell, then run the cell with `answer`. Notebooks 02 and 03 have what you need to know. Do not
# call `ernie_m`: it has all of these. Solutions are in `notebooks/solutions/numpy_solutions.py`.

# %%
import numpy as np
from checking import answer

# To try your functions on, before they are checked.
scores = np.array([[1, 2, 3], [1000, 1001, 1002]], np.float32)
mask = np.array([[True, True, True], [True, False, False]])

# %% [markdown]
# ## 1. A softmax that survives large scores
#
# `scores` (N, C), float32, gives (N, C), float32. Each row becomes exp(sᵢ) / Σⱼ exp(sⱼ): positive numbers that add up
# to 1. It has to be right for scores of 1000 too.
#
# **Prediction.** From which score on is exp infinite in float32? Write it down.


# %%
def softmax(scores):  # (N, C) -> (N, C)
    ...


# %%
answer("softmax", softmax, arrays="numpy")

# %% [markdown]
# ## 2. LayerNorm
#
# `x` (N, E), `gamma` and `beta` (E,), all float32, and `eps`, a Python float, give (N, E), float32. Each row of x is
# normalised: (x − mean) / √(variance + eps), then times gamma, plus beta. The variance is the mean of the squared
# distances from the mean, over all E columns. Rows whose mean is 300 times their spread have to be right too.
#
# **Prediction.** What does a row of equal numbers become?


# %%
def layer_norm(x, gamma, beta, eps):  # (N, E), (E,), (E,) -> (N, E)
    ...


# %%
answer("layer_norm", layer_norm, arrays="numpy")

# %% [markdown]
# ## 3. A mask from lengths
#
# `lengths` (B,), integers from 0 to S, and `S` give (B, S), bool. Row b is True at its first `lengths[b]` positions.
#
# **Prediction.** Row b has 2 tokens. At which positions is it True?


# %%
def mask_from_lengths(lengths, S):  # (B,) -> (B, S)
    ...


# %%
answer("mask_from_lengths", mask_from_lengths)

# %% [markdown]
# ## 4. Without padding, and back
#
# `unpad`: `x` (B, S, E) and `mask` (B, S), bool, give (T, E), the T tokens where the mask is True: first all of row 0,
# in order, then all of row 1, and so on.
#
# `pad`: `packed` (T, E) and the same mask give (B, S, E): every token at its place again, and 0 elsewhere. Both keep
# the dtype.
#
# **Prediction.** Is `pad(unpad(x, mask), mask)` equal to x?


# %%
def unpad(x, mask):  # (B, S, E), (B, S) -> (T, E)
    ...


def pad(packed, mask):  # (T, E), (B, S) -> (B, S, E)
    ...


# %%
answer("unpad", unpad)

# %%
answer("pad", pad)

# %% [markdown]
# ## What to try next
#
# - Check your `softmax` in float16: `from ernie_m.kernels import check` and
#   `check(softmax, "softmax", arrays="numpy", dtypes=["float16"])`. What has to change, and why (notebook 03)?
# - Break one of your functions on purpose, in a way that you think the check will miss.
# - Go on with `02_triton`: the same operations, written for a GPU.
