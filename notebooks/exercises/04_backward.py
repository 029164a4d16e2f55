# %% [markdown]
# # Exercises 4 · Backward
#
# Four backward passes, in NumPy. Training needs the gradient of the loss with respect to every parameter. It is
# computed from the end: each operation gets `dy`, the gradient of the loss with respect to its result, and returns the
# gradients with respect to its arguments. You never need the whole Jacobian, only its product with `dy`.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# Exercises 1 and 2 are the forward passes of two of them. Do not call `ernie_m`, which has all four. Solutions are in
# `notebooks/solutions/backward_solutions.py`.

# %%
import math

import numpy as np
from checking import answer


def erf(x):  # NumPy has none; the result has the dtype of x
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


# %% [markdown]
# ## Your own test: central differences
#
# A gradient can be computed without knowing any derivative: move one number by a small step in both directions, and see
# how much the loss changes. That takes two forward passes for each number, so nobody trains with it. But it is a test
# that does not repeat your mistake. Here the loss is the sum of `dy` times the result.


# %%
def numerical(forward, dy, x, step=1e-6):
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[index] = step
        dx[index] = np.sum(dy * (forward(x + moved) - forward(x - moved))) / (2 * step)
    return dx


def softmax(scores):  # (N, C) -> (N, C)
    exps = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


scores = np.array([[0.0, 1.0, 2.0]])  # float64: a small step needs many digits
for dy in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]):
    print(f"dy = {dy}: the gradient of the scores is", numerical(softmax, np.array([dy]), scores).round(3)[0] + 0.0)

# %% [markdown]
# ## 14. Softmax
#
# p = softmax(s). Takes `dy` and `probs`, which is p, both (N, C), float32, and returns the gradient of the scores s,
# (N, C), float32. The scores themselves are not needed.
#
# Each probability depends on all scores of its row: ∂pⱼ/∂sₖ = pⱼ (δⱼₖ − pₖ), where δⱼₖ is 1 if j = k and else 0. Do not
# build that matrix: you need one sum for each row.
#
# **Prediction.** What does each row of the result sum to? (What happens to p if all scores grow by 1?)


# %%
def softmax_backward(dy, probs):  # (N, C) x 2 -> (N, C)
    ...


# %%
answer("softmax_backward", softmax_backward, arrays="numpy")

# %% [markdown]
# ## 15. LayerNorm
#
# y = n · gamma + beta with n = (x − mean) / s and s = √(variance + eps), as in exercise 2. Takes `dy` and `x` (N, E),
# `gamma` (E,) and `eps`, a Python float, and returns the tuple (dx, dgamma, dbeta): (N, E), (E,) and (E,), all float32.
#
# x reaches y by three paths: directly, through the mean, and through the variance.
#
# **Prediction.** All of gamma is 1, and all of dy is 1. What is dx?


# %%
def layer_norm_backward(dy, x, gamma, eps):  # (N, E), (N, E), (E,) -> (N, E), (E,), (E,)
    ...


# %%
answer("layer_norm_backward", layer_norm_backward, arrays="numpy")

# %% [markdown]
# ## 16. GELU
#
# y = x Φ(x), with Φ(x) = ½ (1 + erf(x/√2)). Takes `dy` and `x` (N, F), float32, and returns dx (N, F), float32. The
# derivative of Φ is φ(x) = exp(−x²/2) / √(2π). Above, `erf` is defined for arrays.
#
# **Prediction.** For which x is the slope largest: does it ever exceed 1? Where is it negative?


# %%
def gelu_backward(dy, x):  # (N, F) x 2 -> (N, F)
    ...


# %%
answer("gelu_backward", gelu_backward, arrays="numpy")

# %% [markdown]
# ## 17. Attention for one head
#
# y = softmax(q kᵀ / √D) v. Takes `dy`, `q`, `k` and `v`, all (S, D), float32, and returns the tuple (dq, dk, dv), each
# (S, D), float32. Compute the probabilities again (scores may be large, as in exercise 1). Then go back step by step:
# through the product with v, the softmax (exercise 14), the scale, and the product of q and k.
#
# For a product c = a b, the gradients are da = dc bᵀ and db = aᵀ dc. If all sizes differ, the shapes leave no other
# choice. Here they do: the probabilities are square, so take care what to transpose.
#
# **Prediction.** All rows of v are equal. What are dq and dk?


# %%
def attention_backward(dy, q, k, v):  # (S, D) x 4 -> (S, D) x 3
    ...


# %%
answer("attention_backward", attention_backward, arrays="numpy")

# %% [markdown]
# ## What to try next
#
# - Compare your functions with central differences, in float64. With which step is the difference smallest, and why
#   does it grow again for smaller ones (notebook 09, section 4)?
# - Your attention's backward holds an (S, S) matrix of probabilities. Which numbers must the forward pass keep so that
#   the backward pass can compute it block by block? Compare with `kernels/attention_backward.py`.
# - Write exercise 16 as a Triton kernel, for y = gelu(x + bias). `kernels.check(your_function, "bias_gelu_vjp")` checks
#   it: it is called as f(dy, x, bias) and returns dx and dbias.
# - Continue with `05_masks_and_spans`.
