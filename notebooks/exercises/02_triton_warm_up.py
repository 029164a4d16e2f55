# %% [markdown]
# # Exercises 2 · Triton, a warm-up
#
# Five small kernels. Each needs one idea more than the one before: a mask, a block with two axes, a sum, a length that
# is read from memory, a loop. They run here without a GPU, in Triton's interpreter, and are checked in float32.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# available only on Linux.
#
# A kernel is a function that many programs run at the same time, each on its own block. The places of a block are
# called lanes; a mask switches some of them off. Before each stub, a figure shows which program touches which cell. It
# was recorded from a run of the solution. To draw your own kernel in the same way, call
# `show_grid("add_constant", add_constant)`. Solutions are in `notebooks/solutions/warm_up_solutions.py`.

# %%
import os

# On import, Triton decides whether kernels are compiled for a GPU or run in Python, program by program.
os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl
from checking import answer
from grids import show_grid

# %% [markdown]
# ## 5. Add a constant
#
# Takes `x` (N,) and `c`, a number, and returns y (N,): y = x + c. The launcher is given: one program for every 8
# numbers. `n` is the length of x.
#
# A pointer plus a block of offsets is a block of addresses. You need `tl.program_id(0)`, `tl.arange(0, BLOCK)`,
# `tl.load` and `tl.store`, both with a `mask`.
#
# **Prediction.** x has 20 numbers. How many programs run? How many lanes of the last one have nothing to do?

# %%
show_grid("add_constant")


# %%
@triton.jit
def add_constant_kernel(x, y, c, n, BLOCK: tl.constexpr):
    pass


def add_constant(x, c):  # (N,) -> (N,)
    y = torch.empty_like(x)
    add_constant_kernel[(triton.cdiv(x.numel(), 8),)](x, y, c, x.numel(), BLOCK=8)
    return y


# %%
answer("add_constant", add_constant)

# %% [markdown]
# ## 6. A block with two axes
#
# Takes `x` (N, E) and `bias` (E,), and returns y (N, E): the bias is added to every row. The launcher is given: the
# grid has two axes, and program (i, j) handles 4 rows and 8 columns.
#
# `offsets[:, None]` and `offsets[None, :]` broadcast as in NumPy: from row offsets and column offsets you get a matrix
# of addresses. In memory, the rows of x follow one another, E numbers each.
#
# **Prediction.** x has shape (6, 19). How many programs run? Which of them read bias[17]?

# %%
show_grid("add_bias")


# %%
@triton.jit
def add_bias_kernel(x, bias, y, N, E, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    pass


def add_bias(x, bias):  # (N, E), (E,) -> (N, E)
    N, E = x.shape
    y = torch.empty_like(x)
    add_bias_kernel[(triton.cdiv(N, 4), triton.cdiv(E, 8))](x, bias, y, N, E, ROWS=4, COLUMNS=8)
    return y


# %%
answer("add_bias", add_bias)

# %% [markdown]
# ## 7. The sum of each row
#
# Takes `x` (N, E) and returns y (N,). One program per row. From here on, the launcher is yours: allocate y with
# `torch.empty(N, dtype=x.dtype, device=x.device)`. The size of a block is a power of two,
# `triton.next_power_of_2(E)`.
#
# You need `tl.sum(block, 0)`, and `other=` of `tl.load`, which says what a masked lane holds.
#
# **Prediction.** x has 11 columns. If you forget the mask, what does program 0 add up?

# %%
show_grid("row_sum")


# %%
@triton.jit
def row_sum_kernel(x, y, E, BLOCK: tl.constexpr):
    pass


def row_sum(x):  # (N, E) -> (N,)
    ...


# %%
answer("row_sum", row_sum)

# %% [markdown]
# ## 8. A masked maximum
#
# Takes `x` (N, C) and `lengths` (N,), integers from 1 to C, and returns y (N,): the largest of the first `lengths[i]`
# numbers of row i. One program per row. Each program loads its own length.
#
# You need `tl.max(block, 0)`. What must a masked lane hold now?
#
# **Prediction.** The figure is for lengths 11, 3, 7 and 1. How many cells of x are read?

# %%
show_grid("masked_max")


# %%
@triton.jit
def masked_max_kernel(x, lengths, y, C, BLOCK: tl.constexpr):
    pass


def masked_max(x, lengths):  # (N, C), (N,) -> (N,)
    ...


# %%
answer("masked_max", masked_max)

# %% [markdown]
# ## 9. A small matrix product
#
# Takes `a` (M, K) and `b` (K, N), and returns y = a b (M, N). Each program computes one tile of y, of 16 rows and 16
# columns. It loops over K, 16 at a time, and adds the product of two tiles to an accumulator.
#
# You need `for start in range(0, K, 16)`, `tl.zeros((16, 16), tl.float32)` and `tl.dot(a, b, input_precision="ieee")`.
# By default, `tl.dot` rounds its operands on a GPU, to make use of its tensor cores.
#
# **Prediction.** a is (20, 40) and b is (40, 24). How many programs run, and how many steps does each loop take? Which
# programs read the last row of a?

# %%
show_grid("matmul")


# %%
@triton.jit
def matmul_kernel(a, b, y, M, K, N, TILE: tl.constexpr):
    pass


def matmul(a, b):  # (M, K), (K, N) -> (M, N)
    ...


# %%
answer("matmul", matmul)

# %% [markdown]
# ## What to try next
#
# - Draw your own kernels: `show_grid("matmul", matmul)`. Where do they differ from the figure?
# - In exercise 5, let each program handle every third number instead of 8 neighbours, and draw it. The result is the
#   same; why would a GPU be slower?
# - Each number of a is read by two programs in exercise 9. How often is it read with tiles of 8, or of 32? Why does
#   that matter (notebook 07)?
# - Continue with `03_triton`: GELU, softmax, LayerNorm and attention, also in half precision.
