# %% [markdown]
# # 00 · The first sentence
# `pip install` Pilot.

# %%
import numpy as np

print(np.arange(3))
