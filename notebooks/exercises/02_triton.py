# %% [markdown]
# # Exercises 2 · Triton
#
# Four kernels, from one that has no sum in it to attention. They run here without a GPU, in Triton's interpreter, and
# are checked in float32, float16 and bfloat16.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"` and `jupyter lab notebooks`. Triton exists for Linux only.
#
# A kernel is a function that many programs run at the same time, each on its own block. Notebooks 04 to 06 have what
# you need to know. The function under each kernel launches it. Solutions are in
# `notebooks/solutions/triton_solutions.py`.

# %%
import os

# When it is imported, Triton decides whether kernels are compiled for a GPU or run in Python, program by program.
os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from checking import answer

# %% [markdown]
# ## 5. GELU
#
# `x` (N, F) gives y (N, F), of the same dtype: y = x/2 · (1 + erf(x/√2)). This is the exact GELU, not its tanh
# approximation. Compute in float32 and round once, at the end. The launcher is given: a program for every 128 numbers,
# whatever row they are in. `n` is how many there are.
#
# You need `tl.program_id`, `tl.arange`, `tl.load`, `tl.math.erf`, `tl.store`, and `.to(tl.float32)`.
#
# **Prediction.** x has 129 numbers. How many programs run, and on how many numbers does the last one work?


# %%
@triton.jit
def gelu_kernel(x, y, n, BLOCK: tl.constexpr):
    pass


def gelu(x):  # (N, F) -> (N, F)
    y = torch.empty_like(x)
    gelu_kernel[(triton.cdiv(x.numel(), 128),)](x, y, x.numel(), BLOCK=128)
    return y


# %%
answer("gelu", gelu)

# %% [markdown]
# ## 6. A row softmax
#
# `scores` (N, C) gives probs (N, C), of the same dtype: exercise 1, in a kernel. One program per row. A block has a
# power of two of places, `triton.next_power_of_2(C)`, and a row has C numbers: what is in the other places?
#
# You need `tl.max(block, 0)`, `tl.sum(block, 0)`, `tl.exp`, and `other=` of `tl.load`.
#
# **Prediction.** C is 3, all scores are 0, and the block has a fourth place with a 0 in it. What do you get, instead of
# 1/3?


# %%
@triton.jit
def softmax_kernel(scores, probs, C, BLOCK: tl.constexpr):
    pass


def softmax(scores):  # (N, C) -> (N, C)
    ...


# %%
answer("softmax", softmax)

# %% [markdown]
# ## 7. Add and LayerNorm in one kernel
#
# `x` and `residual` (N, E), `bias`, `gamma` and `beta` (E,), and `eps` give y (N, E), of x's dtype: the LayerNorm of
# exercise 2, of v = x + bias + residual. v stays in float32, and never goes to memory. One program per row.
#
# **Prediction.** How many numbers does the kernel read and write for each row? How many would three kernels, for two
# additions and the LayerNorm?


# %%
@triton.jit
def add_layer_norm_kernel(x, bias, residual, gamma, beta, y, eps, E, BLOCK: tl.constexpr):
    pass


def add_layer_norm(x, bias, residual, gamma, beta, eps):  # (N, E), (E,), (N, E), (E,), (E,) -> (N, E)
    ...


# %%
answer("add_layer_norm", add_layer_norm)

# %% [markdown]
# ## 8. Attention for one head
#
# `q`, `k` and `v` (S, D) give y (S, D), of the same dtype: y = softmax(q kᵀ / √D) v, the softmax over each row. S is 1
# to 300, D is 16, 32, 64 or 128. One program for 32 rows of q, say; it goes over k and v in blocks of 32 rows, and
# never has more than a (32, 32) block of scores (notebook 06). A simpler start: a block that holds all of k.
#
# You need `tl.dot(a, b, input_precision="ieee")`, `tl.trans`, `tl.where`, and a loop. The factors of `tl.dot` have one
# dtype, and at least 16 rows and columns; its result is float32.
#
# **Prediction.** S is 33. How many programs run, how many blocks of k does each read, and how many rows of the last
# block are real?


# %%
@triton.jit
def attention_kernel(q, k, v, y, scale, S, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    pass


def attention_head(q, k, v):  # (S, D) x 3 -> (S, D)
    ...


# %%
answer("attention_head", attention_head)

# %% [markdown]
# ## What to try next
#
# - Take the cast to float32 out of a kernel that passes. In which dtype does the check see it first?
# - On a machine with a GPU, leave the line with `TRITON_INTERPRET` out and start the notebook again: the same checks,
#   on the same kernels, compiled.
# - Compare yours with `kernels/gelu.py`, `kernels/layer_norm.py` and `kernels/attention.py`. What do they do that you
#   do not, and what is it for?
