# %% [markdown]
# # Exercises 3 · Triton
#
# Four kernels, from one without any sum to attention. They run here without a GPU, in Triton's interpreter, and are
# checked in float32, float16 and bfloat16.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# available only on Linux.
#
# A kernel is a function that many programs run at the same time, each on its own block. Notebooks 04 to 06 explain what
# you need. The function below each kernel launches it. Solutions are in `notebooks/solutions/triton_solutions.py`.

# %%
import os

# On import, Triton decides whether kernels are compiled for a GPU or run in Python, program by program.
os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from checking import answer

# %% [markdown]
# ## 10. GELU
#
# Takes `x` (N, F) and returns y (N, F), of the same dtype: y = x/2 · (1 + erf(x/√2)). This is the exact GELU, not its
# tanh approximation. Compute in float32 and round once, at the end. The launcher is given: one program for every 128
# numbers, across row boundaries. `n` is the number of elements.
#
# You need `tl.program_id`, `tl.arange`, `tl.load`, `tl.math.erf`, `tl.store`, and `.to(tl.float32)`.
#
# **Prediction.** x has 129 numbers. How many programs run, and how many numbers does the last one process?


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
# ## 11. A row softmax
#
# Takes `scores` (N, C) and returns probs (N, C), of the same dtype: exercise 1 as a kernel, with one program per row.
# A block's size is a power of two, `triton.next_power_of_2(C)`, but a row has C numbers: what is in the rest of it?
#
# You need `tl.max(block, 0)`, `tl.sum(block, 0)`, `tl.exp`, and `other=` of `tl.load`.
#
# **Prediction.** C is 3, all scores are 0, and the fourth element of the block is 0. What do you get instead of 1/3?


# %%
@triton.jit
def softmax_kernel(scores, probs, C, BLOCK: tl.constexpr):
    pass


def softmax(scores):  # (N, C) -> (N, C)
    ...


# %%
answer("softmax", softmax)

# %% [markdown]
# ## 12. Add and LayerNorm in one kernel
#
# Takes `x` and `residual` (N, E), `bias`, `gamma` and `beta` (E,), and `eps`; returns y (N, E), of x's dtype: the
# LayerNorm of exercise 2, applied to v = x + bias + residual. v stays in float32 and is never written to memory. One
# program per row.
#
# **Prediction.** How many numbers does the kernel read and write per row? How many would three kernels read and write,
# two for the additions and one for the LayerNorm?


# %%
@triton.jit
def add_layer_norm_kernel(x, bias, residual, gamma, beta, y, eps, E, BLOCK: tl.constexpr):
    pass


def add_layer_norm(x, bias, residual, gamma, beta, eps):  # (N, E), (E,), (N, E), (E,), (E,) -> (N, E)
    ...


# %%
answer("add_layer_norm", add_layer_norm)

# %% [markdown]
# ## 13. Attention for one head
#
# Takes `q`, `k` and `v` (S, D) and returns y (S, D), of the same dtype: y = softmax(q kᵀ / √D) v, with the softmax over
# each row. S is 1 to 300; D is 16, 32, 64 or 128. Let each program handle, say, 32 rows of q, loop over k and v in
# blocks of 32 rows, and never hold more than a (32, 32) block of scores (notebook 06). For a simpler start, use one
# block that holds all of k.
#
# You need `tl.dot(a, b, input_precision="ieee")`, `tl.trans`, `tl.where`, and a loop. The operands of `tl.dot` must
# have the same dtype and at least 16 rows and columns; its result is float32.
#
# **Prediction.** S is 33. How many programs run, how many blocks of k does each read, and how many rows of the last
# block hold real tokens?


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
# - Remove the cast to float32 from a kernel that passes. In which dtype does the check notice first?
# - On a machine with a GPU, remove the line with `TRITON_INTERPRET` and restart the notebook: the same checks then run
#   on the compiled kernels.
# - Compare your kernels with `kernels/gelu.py`, `kernels/layer_norm.py` and `kernels/attention.py`. What do they do
#   that yours do not, and why?
# - Continue with `04_backward`: how gradients come back through these operations.
