# %% [markdown]
# # Exercises 1 · NumPy
#
# Five small functions of the model, in NumPy. You write each from its specification; one call then checks it on inputs
# that are drawn to find mistakes. If there is one, you see the smallest input that shows it.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# Fill in a stub, run its cell, then run the cell with `answer`. Notebooks 02 and 03 explain what you need. Do not call
# `ernie_m`, which has nearly all of these functions. Solutions are in `notebooks/solutions/numpy_solutions.py`.

# %%
import numpy as np
from checking import answer

# Inputs to try your functions on before they are checked.
scores = np.array([[1, 2, 3], [1000, 1001, 1002]], np.float32)
mask = np.array([[True, True, True], [True, False, False]])

# %% [markdown]
# ## 1. A softmax that survives large scores
#
# Takes `scores` (N, C), float32, and returns (N, C), float32. Each row becomes exp(sᵢ) / Σⱼ exp(sⱼ): positive numbers
# that sum to 1. It must also be right for scores of 1000.
#
# **Prediction.** From which score on does exp overflow in float32? Write it down.


# %%
def softmax(scores):  # (N, C) -> (N, C)
    ...


# %%
answer("softmax", softmax, arrays="numpy")

# %% [markdown]
# ## 2. LayerNorm
#
# Takes `x` (N, E), `gamma` and `beta` (E,), all float32, and `eps`, a Python float; returns (N, E), float32. Each row
# of x is normalised, (x − mean) / √(variance + eps), then multiplied by gamma and shifted by beta. The variance is the
# mean squared distance from the mean over all E columns. It must also be right for rows whose mean is 300 times their
# standard deviation.
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
# Takes `lengths` (B,), integers from 0 to S, and `S`; returns (B, S), bool. Row b is True at its first `lengths[b]`
# positions.
#
# **Prediction.** Row b has 2 tokens. At which positions is it True?


# %%
def mask_from_lengths(lengths, S):  # (B,) -> (B, S)
    ...


# %%
answer("mask_from_lengths", mask_from_lengths)

# %% [markdown]
# ## 4. Removing padding, and putting it back
#
# `unpad` takes `x` (B, S, E) and `mask` (B, S), bool, and returns (T, E): the T tokens where the mask is True, all of
# row 0 in order, then all of row 1, and so on.
#
# `pad` takes `packed` (T, E) and the same mask, and returns (B, S, E): every token back in its place, and 0 elsewhere.
# Both keep the dtype.
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
#   `check(softmax, "softmax", arrays="numpy", dtypes=["float16"])`. What must change, and why (notebook 03)?
# - Break one of your functions on purpose, in a way you think the check will miss.
# - Continue with `02_triton_warm_up`: your first kernels for a GPU.
