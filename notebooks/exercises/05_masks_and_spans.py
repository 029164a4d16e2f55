# %% [markdown]
# # Exercises 5 · Masks and spans
#
# Two functions with hardly any arithmetic. One decides who may see whom in pretraining; the other turns probabilities
# into spans of a text. Both look simple, and both have well-known ways to go wrong without any error message.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# Do not call `ernie_m`, which has both. Solutions are in `notebooks/solutions/mask_and_span_solutions.py`.

# %%
import numpy as np
from whole import answer

# Inputs to try your functions on before they are checked.
sides = np.array([0, 0, 0, 1, 1, 1])
masked = np.array([False, True, False, False, True, False])
starts = np.array([0.1, 0.7, 0.9, 0.1, 0.1, 0.1, 0.8])
ends = np.array([0.1, 0.1, 0.1, 0.6, 0.9, 0.1, 0.8])

# %% [markdown]
# ## 18. A mask that does not leak
#
# In cross-attention masked language modelling (CAMLM; ERNIE-M, section 3.1), a sequence holds a sentence and its
# translation: side 0 and side 1. Some words on both sides are replaced by [MASK]. The model must predict each from the
# **other side alone**, so that it learns to translate. A word that can be guessed from its own sentence teaches nothing
# about the other language.
#
# Takes `sides` (S,), 0 or 1, and `masked` (S,), bool; returns (S, S), bool: True in row i, column j if place i may see
# place j. Call the places that are not masked *text*. All of this must hold:
#
# 1. every place sees itself;
# 2. a masked place sees all the text of the other side;
# 3. a text place sees all the text of its own side;
# 4. nothing from the text of its own side reaches a masked place: not directly, and not through other places, in any
#    number of layers.
#
# The model has 12 layers, all with this mask. In each, a place reads what the places that it sees have read before.
#
# **Prediction.** A test looks at one layer, and finds that no masked place sees its own side. Let text see both sides:
# does the test pass? In which layer does a masked place first read its own side?


# %%
def leak_proof_mask(sides, masked):  # (S,), (S,) -> (S, S)
    ...


# %%
answer("leak_proof_mask", leak_proof_mask)

# %% [markdown]
# ## 19. Pairing spans
#
# To extract information from a text, the model gives each token two probabilities: that a span starts there, and that
# one ends there. The two know nothing of each other. This is the rule by which UIE pairs them (PaddleNLP's `get_span`):
#
# - starts and ends are the tokens whose probability is above `threshold`; equal is not enough;
# - each end is paired with the last start that is at or before it, but after the previous end;
# - an end without such a start is dropped, and so is a start that no end takes.
#
# Takes `starts` and `ends` (n,), and `threshold`; returns a list of tuples (start, end, probability), in order. `end`
# is the last token itself, not the one after it. The probability is that of the start times that of the end.
#
# **Prediction.** Above, starts are at 1, 2 and 6, and ends at 3, 4 and 6, for a threshold of 0.5. Which pairs are
# there? What is the smallest probability that a span can have?


# %%
def pair_spans(starts, ends, threshold):  # (n,), (n,), a number -> a list of (start, end, probability)
    ...


# %%
answer("pair_spans", pair_spans)

# %% [markdown]
# ## What to try next
#
# - Several masks are right. Which cells are free? Compare yours with
#   `ernie_m.reference.objectives.camlm_sees(sides, np.flatnonzero(masked), see_own_masks=True)`.
# - Two spans of the same kind may overlap in a text, or one may contain another. Which of them can this rule find? How
#   would you pair starts and ends if the model scored each pair?
# - A broken mask shows in training only as a loss that is too good: continue with `06_broken_trainings`.
