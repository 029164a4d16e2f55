# %% [markdown]
# # 08 · Layer parity
#
# **Question.** You have written a model a second time. How do you know that it computes the same? And if it does not,
# how do you find the one wrong line?
#
# This notebook ports a small model in two ways: its checkpoint from one format to another, and its computation from one
# implementation to another. Then it plants two faults, and finds them.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# published for Linux: use WSL on Windows, a container on a Mac. The checkpoint used here is one of the project's test
# files.

# %%
import os

# Triton reads this when it is imported. Kernels then run in its interpreter, on the CPU, one program at a time.
os.environ["TRITON_INTERPRET"] = "1"

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from ernie_m import kernels, reference
from ernie_m.kernels.runtime import interpreter
from ernie_m.reference.checkpoint import open_checkpoint
from ernie_m.reference.parameters import flatten

interpreter.install()  # bfloat16 that rounds as on a GPU

PADDLE = Path("../tests/fixtures/paddle_tiny")
assert PADDLE.is_dir(), "run this notebook in the directory notebooks/ of a checkout"

# %% [markdown]
# ## Step 1: the weights, bit by bit
#
# `PADDLE` holds a tiny model written by PaddleNLP, the library that ERNIE-M comes from. `from_pretrained` reads it;
# `save_pretrained` writes it in Hugging Face's format. In torch and Hugging Face a linear map is y = x Wᵀ + b, where W
# is (outputs, inputs). Paddle stores (inputs, outputs).
#
# **Prediction.** The hidden size is 32, the feed-forward size 128. Of the six weights of one layer (q, k, v, out,
# linear1, linear2), how many have a different **shape** in the other format? And how many have different **contents**?

# %%
original = reference.ErnieMModel.from_pretrained(PADDLE / "model")
directory = tempfile.TemporaryDirectory()
original.save_pretrained(directory.name)
paddle, converted = open_checkpoint(PADDLE / "model"), open_checkpoint(directory.name)
print(paddle.format, "->", converted.format, "with", len(paddle.tensors), "and", len(converted.tensors), "tensors")

shapes_differ = contents_differ = 0
print(f"\n{'in layer 0':34}  {'Paddle':>10}  {'Hugging Face':>12}  transposed")
for name, stored in converted.tensors.items():
    if name.startswith("encoder.layers.0.") and len(stored.shape) == 2:
        # In Hugging Face's names q, k and v are one module deeper.
        in_paddle = paddle.tensors[name.replace("self_attn.self_attn", "self_attn")]
        shapes_differ += stored.shape != in_paddle.shape
        contents_differ += not np.array_equal(stored.load(), in_paddle.load())
        transposed = np.array_equal(stored.load(), in_paddle.load().T)
        shapes = f"{in_paddle.shape!s:>10}  {stored.shape!s:>12}"
        print(f"{name.removeprefix('encoder.layers.0.'):34}  {shapes}  {transposed}")
print(f"\ndifferent shapes: {shapes_differ}, different contents: {contents_differ}")

# %% [markdown]
# Two shapes differ, but all six matrices are transposed. The four square ones are a trap: without the transpose they
# still fit, and no error is raised. So shapes prove little.

# %%
assert (shapes_differ, contents_differ) == (2, 6) and len(paddle.tensors) == len(converted.tensors)

# %% [markdown]
# To prove more, load both and compare every number, bit by bit.

# %%
again = reference.ErnieMModel.from_pretrained(directory.name)
a, b = flatten(original.parameters), flatten(again.parameters)
same = sum(np.array_equal(a[path], b[path]) for path in a)
print(f"{same} of {len(a)} arrays are bitwise equal")
assert a.keys() == b.keys() and same == len(a)

# %% [markdown]
# ## Step 2: outputs computed by the original
#
# Even if both agree, both may be wrong, because the same code read them. You need an outside reference. The checkpoint
# comes with inputs, and with the outputs that PaddleNLP computed from them. Record such a file before you write the
# first line of a port. Make the inputs awkward: these are three rows of 17, 12 and 9 tokens, so there is padding.
#
# **Prediction.** The model has two layers and runs in float32; the two libraries sum in different orders. The outputs
# are about 0.3 in size. How far apart are they: 10⁻³, 10⁻⁵, 10⁻⁷?

# %%
expected = np.load(PADDLE / "expected.npz")
ids, mask = expected["input_ids"], expected["attention_mask"]
valid = mask == 1
theirs = expected["model.explicit_mask.0"]
ours = again(ids, attention_mask=mask).last_hidden_state
difference = np.abs(ours - theirs)[valid].max()
print(f"tokens: {mask.sum(axis=1).tolist()}; difference from PaddleNLP below 2e-6: {difference < 2e-6}")

# %%
assert difference < 2e-6

# %% tags=["varies"]
print(f"largest difference: {difference:.2e}")

# %% [markdown]
# This compares real tokens only: what a model computes for padding has no meaning, and two correct models may differ
# there.
#
# ## Step 3: two implementations, every layer
#
# `reference` is NumPy; `kernels` has the same model in torch, built on Triton kernels. Both can be traced: inside `with
# reference.trace()` each layer records its results, under the same names.
#
# How close should they be? Do not pick a number. Run the reference in float64, which is accurate to about 10⁻¹⁵. The
# distance of its float32 results from those in float64 is the effect of rounding in this model. A correct port is about
# as far away.


# %%
def traced(model, gradients: bool = False):
    """The trace of a model of either library."""
    torch_model = isinstance(model, torch.nn.Module)
    batch = [torch.from_numpy(x) if torch_model else x for x in (ids, mask)]
    with torch.set_grad_enabled(gradients), reference.trace() as found:
        model(batch[0], attention_mask=batch[1])
    return found


truth = traced(again.astype(np.float64))
of_reference = reference.compare(traced(again), truth, mask, tolerance=np.inf).errors
port = kernels.ErnieMModel.from_pretrained(directory.name)
of_port = reference.compare(traced(port), truth, mask, tolerance=np.inf).errors
noise = max(of_reference.values())
print(f"float32 reference: {len(of_reference)} entries; noise below 2e-6: {noise < 2e-6}")
print(f"float32 port:      {len(of_port)} entries; within four times the noise: {max(of_port.values()) < 4 * noise}")
assert noise < 2e-6 and max(of_port.values()) < 4 * noise

# %% [markdown]
# The port has fewer entries, because a fused kernel does not store its intermediate results. This will matter below.

# %%
short = {name: name.replace("encoder.layers.", "").replace("self_attn.self_attn", "attn") for name in truth}
figure, axes = plt.subplots(figsize=(8, 4), dpi=80)
for label, errors, marker in (("reference, float32", of_reference, "o"), ("port, float32", of_port, "x")):
    rounded = {short[name]: error for name, error in errors.items() if error}
    axes.semilogy(list(rounded), list(rounded.values()), marker, label=label)
axes.tick_params(axis="x", rotation=90, labelsize=7)
axes.set(ylabel="distance from float64", ylim=(1e-8, 1e-5))
axes.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# This is the noise floor. It varies a little, and the second layer is at about the same level as the first. The first
# two entries of the trace are not in the figure: they are rows of a table, copied without any arithmetic, so their
# distance is exactly 0, which a logarithmic axis cannot show. A fault would show as a step up, with everything after it
# high as well.
#
# ## A fault, found by the trace
#
# Here is the trap from step 1: in layer 1, the square `out_proj` is not transposed.
#
# **Prediction.** What is the first entry of the trace that is wrong? The names are on the axis above.

# %%
faulty = kernels.ErnieMModel.from_pretrained(directory.name)
with torch.no_grad():
    weight = dict(faulty.named_parameters())["encoder.layers.1.self_attn.out_proj.weight"]
    weight.copy_(weight.T.clone())
comparison = reference.compare(traced(faulty), truth, mask, tolerance=4 * noise)
print("first difference:", comparison.name, "after", len(comparison.errors) - 1, "entries that agree")

# %% [markdown]
# There is nothing wrong with `norm1` itself. But the port records nothing between `context`, which is still right, and
# `norm1`, and `out_proj` is between them.

# %%
assert comparison.name == "encoder.layers.1.norm1"

# %% [markdown]
# When gradients are enabled, a traced model takes its plain path, which fuses nothing:

# %%
comparison = reference.compare(traced(faulty, gradients=True), truth, mask, tolerance=4 * noise)
print("on the plain path:", comparison.name, "after", len(comparison.errors) - 1, "entries that agree")
assert comparison.name == "encoder.layers.1.self_attn.out_proj"

# %% [markdown]
# Now the trace names the fault. Only the first wrong entry matters: everything after it is wrong as a consequence.
#
# ## A fault that a picked tolerance misses
#
# This time the weights are right, but somebody has configured `gelu_new`, the tanh GELU of notebook 04, instead of the
# exact one.
#
# **Prediction.** A test compares the outputs with a tolerance of 10⁻³, as many ports do. Does it fail?

# %%
other = kernels.ErnieMModel.from_pretrained(directory.name, hidden_act="gelu_new")
result = traced(other)
output = "encoder.layers.1.norm2"
off = np.abs(result[output].padded() - truth[output].padded())[valid].max()
print("picked, 1e-3 on the output: ", "passes" if off < 1e-3 else "fails")
comparison = reference.compare(result, truth, mask, tolerance=4 * noise)
print("four times the noise:        first difference", comparison.name)

# %% [markdown]
# It passes, although the model is wrong in every layer.

# %%
assert off < 1e-3 and comparison.name == "encoder.layers.0.activation"

# %% [markdown]
# ## Float64 removes the noise
#
# Noise hides faults. So run both sides in float64: any difference that remains is a fault.
#
# **Prediction.** How far is the correct port from the reference in float64? And the port with the other GELU?

# %%
parity = {}
for name, changes in (("correct port", {}), ("gelu_new", {"hidden_act": "gelu_new"})):
    model = kernels.ErnieMModel.from_pretrained(directory.name, dtype=torch.float64, **changes)
    parity[name] = reference.compare(traced(model, gradients=True), truth, mask, tolerance=np.inf).errors
    print(f"{name:12}  all of {len(parity[name])} entries within 1e-12: {max(parity[name].values()) < 1e-12}")

figure, axes = plt.subplots(figsize=(8, 4), dpi=80)
for name, errors in parity.items():
    axes.semilogy([short[n] for n in errors], [max(e, 1e-17) for e in errors.values()], ".-", label=name)
axes.tick_params(axis="x", rotation=90, labelsize=7)
axes.set(ylabel="distance in float64")
axes.legend()
figure.tight_layout()
plt.show()
directory.cleanup()

# %% [markdown]
# Right and wrong are more than ten orders of magnitude apart, so any reasonable tolerance works. (In float64 the torch
# model computes in plain torch, so this tests the model around the kernels. The kernels themselves are tested one by
# one, by `kernels.check`, against derived bounds: notebooks 04 to 06.)

# %%
assert len(parity["correct port"]) == len(truth) and max(parity["correct port"].values()) < 1e-12
assert max(parity["gelu_new"].values()) > 1e-5

# %% [markdown]
# ## How to port a model, and know that it is right
#
# 1. **Record outputs of the original** before you begin, on awkward inputs: padding, one token, the longest row.
# 2. **Compare weights bit by bit.** All names are used, none left over; beware of square matrices.
# 3. **Use the same names** for intermediate results, so that two implementations can be compared.
# 4. **Float64 first.** Every entry agrees within about 10⁻¹². Only then float32, against noise that you measured.
# 5. **Look at the first entry that differs.** On a fused path, switch to the plain one.
# 6. **Check kernels one by one**, against derived bounds, on drawn inputs.
# 7. **Plant a fault** and see your test fail. A test that you have never seen fail proves nothing yet.
#
# ## What to try next
#
# * Plant a fault of your own: `q_proj` not transposed; another `layer_norm_eps` in `from_pretrained`; positions off by
#   one. For each, predict the first entry that will differ, and check.
# * Row 0 has no padding. Which planted fault would its outputs not show?
# * `python -m ernie_m.reference trace` traces a model on the command line: see `--help`.
# * Set `dtype=torch.bfloat16` in `from_pretrained`. How large is the noise now, and would you still find `gelu_new`?
# * Next: [09_backprop_by_hand](09_backprop_by_hand.ipynb), where the second half of the course begins: how the model
#   learns.
