# %% [markdown]
# # Exercises 6 · Broken trainings
#
# Three trainings, each with one fault that somebody planted. None raises an error. You get what a training leaves
# behind: losses, norms, how far each parameter moved. Find out what is wrong, and where.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# Do not read `broken.py` and `diagnoses.py`, which know the faults. Solutions are in
# `notebooks/solutions/broken_solutions.py`.
#
# ## The task
#
# It is CAMLM in the small. A sentence has three words out of four: x0 to x3. Each word has two translations: x0 becomes
# y0 or y1, x1 becomes y2 or y3, and so on, with equal probability. A [MASK] for every word is appended to the pair, on
# both sides, with the position of its word. The model must predict each word from the **other side alone**. It has two
# layers, and is trained by `ernie_m.reference.training.train`: AdamW, gradients clipped to norm 1, and a learning rate
# that rises for 20 steps of warm-up, then falls to 0.
#
# **Prediction.** A perfect model sees y2, and must predict x1. What is its loss? It sees x1, and must predict y2 or y3:
# what is its loss now? So what is the lowest mean loss that any model can reach? Write the number down: you need it.

# %%
from broken import run, show
from diagnoses import CAUSES, diagnose

for name, meaning in CAUSES.items():
    print(f"{name:15}{meaning}")

# %% [markdown]
# In each training, one of these is the fault. `run("A")` has all that is known about training A:
#
# - `losses`, `norms`: of each step; the norm is that of all gradients together, before clipping;
# - `gradients`, `moved`: dictionaries by parameter: the norm of its gradient, and how far it moved, in each step;
# - `batches`: how many of its batches are different;
# - `sees`: (S, S), True where the place of the row sees that of the column, for the first pair; `places`: what stands
#   there.

# %%
print(run("A").places)
print("parameters:", len(run("A").gradients), "of which one is", list(run("A").gradients)[-1])

# %% [markdown]
# ## 20. Training A
#
# Everybody is happy with this one. Should they be?
#
# Set `cause` to one of the names above. If you have found it, set `where` too: for a leak, (row, column) of a cell of
# `sees` that should be False; for a rate that jumps, the first step with the new rate; for parameters, a part of their
# names, such as `"v_proj"`.

# %%
show("A")

# %%
cause, where = None, None
diagnose("A", cause, where)

# %% [markdown]
# ## 21. Training B
#
# It begins well, and then something happens.
#
# **Prediction.** AdamW divides each gradient by a running mean of its size. If all gradients were twice as large, how
# much further would a parameter move? And if the learning rate were twice as large?

# %%
show("B")

# %%
cause, where = None, None
diagnose("B", cause, where)

# %% [markdown]
# ## 22. Training C
#
# The loss falls, but it stays far above the number that you wrote down.
#
# **Prediction.** Suppose the model knows which words the other side has, but not which of them is at the position of
# its [MASK]. Could its loss come down to your number? Which part of the model finds the right position?

# %%
show("C")

# %%
cause, where = None, None
diagnose("C", cause, where)

# %% [markdown]
# ## What to try next
#
# - For each training: which single number, printed after every step, would have shown the fault at once?
# - In training C, weights without any gradient move. Why? Why do their biases stay where they are?
# - A leak like that of training A stays hidden if the data have no known best loss. Which test would find it (exercise
#   18)?
