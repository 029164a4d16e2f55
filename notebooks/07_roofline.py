# %% [markdown]
# # 07 · The roofline
#
# **Question.** How fast can the model possibly be, which steps are inherently slow, and what can fusing gain?
#
# A GPU does two things: it computes, and it moves bytes. Each step of the model needs a certain amount of both, which
# you can count with a pencil. These counts give the least time that the step can take, before anybody has written a
# kernel.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# published for Linux: use WSL on Windows, a container on a Mac.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ernie_m import kernels
from ernie_m.kernels.benchmark import work
from ernie_m.kernels.benchmark.work import BATCHES, SIZES, Batch, Work

# An NVIDIA H100 (SXM), from its data sheet: the tensor cores' bfloat16 operations, and main memory's bytes, per second.
MATRIX_RATE, MEMORY_RATE = 989e12, 3.35e12

# %% [markdown]
# ## Operations and bytes
#
# A matrix product of (T, n) and (n, m) takes 2·T·n·m operations: for each of T·m results, n products and n additions.
# It reads both matrices and writes the result, in bfloat16 at 2 bytes a number. The ratio of operations to bytes is the
# **intensity**.
#
# From here on we use a ragged batch, as real text is: 64 rows of 128 tokens on average, 8,192 in all. Only tokens are
# counted, no padding.
#
# **Prediction.** q, k and v come from one product of (8192, 768) and (768, 2304). How many operations and bytes does it
# take, and what is its intensity? The H100 can do 989 / 3.35 = 295 operations in the time that it moves one byte. Does
# this step wait for computing or for memory?

# %%
base, batch, width = SIZES["base"], BATCHES["ragged"], 2
T, E, F, H = batch.tokens, base.hidden, base.intermediate, base.heads
qkv = dict(work.products(base, T, width))["qkv"]
print(f"{T} tokens: {qkv.flops / 1e9:.1f} GFLOP, {qkv.bytes / 1e6:.1f} MB, intensity {qkv.flops / qkv.bytes:.0f}")
print(f"computing takes {qkv.flops / MATRIX_RATE * 1e6:.0f} µs, moving {qkv.bytes / MEMORY_RATE * 1e6:.0f} µs")

# %% [markdown]
# The longer of the two times is the step's **floor**. A step that waits for computing is *compute-bound*, one that
# waits for memory is *memory-bound*. Now the whole layer. (Add + LayerNorm makes the 3 passes that notebook 05 counted;
# GELU makes 2, one to read and one to write.)

# %%
assert qkv.flops == 2 * T * E * 3 * E
assert qkv.bytes == 2 * (T * E + E * 3 * E + T * 3 * E)

# %% [markdown]
# Besides qkv there are three more products with weights: out, after attention, and ffn1 and ffn2, those of the
# feed-forward network.
#
# **Prediction.** Which of the steps qkv, out, ffn1, ffn2, attention, GELU and LayerNorm are memory-bound? And what
# share of a layer's time do the products with weights take?

# %%
steps: dict[str, Work] = dict(work.products(base, T, width))
steps["attention"] = work.packed_attention(base, batch, width)
steps["bias_gelu"] = work.bias_gelu(base, T, width)
norm = work.add_layer_norm(base, T, width)
steps["2 x add_layer_norm"] = Work(2 * norm.flops, 2 * norm.bytes)

floors = {name: step.floor(MATRIX_RATE, MEMORY_RATE) for name, step in steps.items()}
layer = sum(floors.values())
print(f"{'':18}  {'GFLOP':>6}  {'MB':>5}  {'floor, µs':>9}  {'share':>5}  waits for")
for name, step in steps.items():
    bound = "computing" if step.flops / MATRIX_RATE > step.bytes / MEMORY_RATE else "memory"
    cells = f"{step.flops / 1e9:6.1f}  {step.bytes / 1e6:5.0f}  {floors[name] * 1e6:9.0f}  {floors[name] / layer:5.0%}"
    print(f"{name:18}  {cells}  {bound}")
print(f"a layer: {layer * 1e6:.0f} µs; {base.layers} layers: {base.layers * layer * 1e3:.1f} ms")
products = sum(floors[name] for name in ("qkv", "out", "ffn1", "ffn2")) / layer
print(f"products with weights: {products:.0%}")

# %% [markdown]
# GELU and LayerNorm are not matrix products: they use no tensor core, so they count as 0 operations here and only as
# bytes. (Their arithmetic has a limit of its own, further down.)

# %%
assert 0.6 < products < 0.85

# %% [markdown]
# The figure shows both limits; their shape gives the method its name. A step's intensity says on which dotted line it
# is. How far up the line it gets depends on how good the program is: somewhere below the roof, never above it.

# %%
intensity = np.logspace(0, 3.5, 100)
figure, axes = plt.subplots(figsize=(6.5, 3.4), dpi=80)
axes.loglog(intensity, np.minimum(MATRIX_RATE, intensity * MEMORY_RATE) / 1e12, color="black")
axes.text(3, 14, "waits for memory", rotation=36)
axes.text(330, 1100, "waits for computing")
for number, (name, step) in enumerate((name, step) for name, step in steps.items() if step.flops):
    x = step.flops / step.bytes
    axes.axvline(x, color=f"C{number}", linestyle=":", label=f"{name}: {x:.0f} operations per byte")
axes.set(xlabel="operations per byte", ylabel="TFLOP/s at most", title="H100, bfloat16, base model, 8,192 tokens")
axes.set_ylim(3, 2000)
axes.legend(fontsize=7, loc="lower right")
plt.show()

# %% [markdown]
# ## What can fusing gain?
#
# Fusing leaves the operations as they are and saves bytes. So it helps where a step is memory-bound, and gains nothing
# where it is compute-bound. An implementation that runs one operation after the other, without fusing, moves:
#
# * bias, then GELU: 4 passes over (T, F), not 2;
# * bias, residual, LayerNorm: 7 passes over (T, E), not 3, twice in a layer (notebook 05);
# * attention: scores and probabilities of every head are each written and read, Σn² · H numbers (notebook 06).
#
# **Prediction.** There are two ways to be faster: (a) fuse all of this; (b) skip the padding, where otherwise a
# rectangle of 64 x 512 is computed. Which gains more, and how much does each gain at most?

# %%
rectangle = BATCHES["dense"]  # 64 x 512: the ragged batch, padded


def layer_floor(of: Batch, fused: bool) -> float:
    """The least time of a layer, in seconds."""
    T = of.tokens
    attention = work.packed_attention(base, of, width)
    products = sum(product.floor(MATRIX_RATE, MEMORY_RATE) for _, product in work.products(base, T, width))
    if fused:
        elementwise = work.bias_gelu(base, T, width).bytes + 2 * work.add_layer_norm(base, T, width).bytes
        return products + attention.floor(MATRIX_RATE, MEMORY_RATE) + elementwise / MEMORY_RATE
    elementwise = (4 * T * F + 2 * 7 * T * E) * width
    scores = 4 * of.pairs * H * width
    return products + (attention.bytes + scores + elementwise) / MEMORY_RATE

print(f"{'µs per layer':16}  {'unfused':>8}  {'fused':>6}  {'fusing gains':>12}")
times = {}
for name, of in (("padded", rectangle), ("packed", batch)):
    times[name] = unfused, fused = [1e6 * layer_floor(of, fused) for fused in (False, True)]
    print(f"{name:16}  {unfused:8.0f}  {fused:6.0f}  {unfused / fused:10.1f} x")
packing = times["padded"][1] / times["packed"][1]
print(f"packing gains {packing:.1f} x, both together {times['padded'][0] / times['packed'][1]:.1f} x")

# %% [markdown]
# Skipping work gains the most. After that, fusing is worthwhile, above all in attention on long rows. Once everything
# is fused, most of the rest is matrix products: even a GELU that took no time at all would only save its share in the
# table above. That is the use of a floor: it tells you when to stop.

# %%
assert packing > times["padded"][0] / times["padded"][1] > 1.2
assert abs(times["packed"][1] / 1e6 / layer - 1) < 1e-9

# %% [markdown]
# ## A third limit: instructions
#
# GELU is only memory-bound if its arithmetic is cheap enough. It runs on ordinary instructions, not on the tensor
# cores. An H100 has 132 multiprocessors with 4 schedulers each; a scheduler issues one instruction for 32 threads per
# clock cycle. The tensor cores of a multiprocessor do 4,096 operations per cycle, so the data sheet's 989 TFLOP/s are
# for a clock of 1.83 GHz.
#
# **Prediction.** GELU reads 2 bytes and writes 2 for each number. How many instructions per number can the GPU issue in
# the time that this takes? With the library's error function the kernel would need 38.

# %%
clock = MATRIX_RATE / (132 * 4096)
issued = 132 * 4 * 32 * clock  # instructions per second, counted per thread
affordable = 4 / MEMORY_RATE * issued
print(f"time for {affordable:.0f} instructions per number")

# %% [markdown]
# So with 38 the kernel would already wait for its arithmetic, not for memory. That is why it has an error function of
# its own.

# %%
assert 30 < affordable < 38

# %% [markdown]
# How many instructions does the kernel take? The project can compile its kernels without a GPU, and count instructions
# in the machine code. This takes about ten seconds. For the whole report, run `python -m ernie_m.kernels compile`.

# %%
command = [sys.executable, "-m", "ernie_m.kernels", "compile", "--json", "--target=sm_90", "--dtype=bfloat16"]
command += ["--operation=bias_gelu", "--operation=add_layer_norm"]
# Kernels are either interpreted or compiled: even if this process interprets, the other process must compile.
environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
report = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
of_base = {row["operation"]: row for row in report["kernels"] if row["label"] in ("F=3072", "E=768")}
for name, row in of_base.items():
    # Per row, instructions are counted for a warp of 32 threads. LayerNorm moves three numbers where GELU moves two.
    count, limit = row["instructions_per"], affordable
    if row["per"] == "row":
        count, limit = count * 32 / E, affordable * 3 / 2
    print(f"{name}: fewer instructions than there is time for: {count < limit}; spills: {row['spills']} bytes")
    assert count < limit and row["spills"] == 0

# %% tags=["varies"]
for name, row in of_base.items():
    print(f"{name:15} {row['instructions_per']:.1f} instructions per {row['per']}, {row['registers']} registers")
    print(f"{'':15} {row['occupancy']} blocks of {row['num_warps']} warps at once, {row['loads_16']} loads of 16 bytes")

# %% [markdown]
# What to look for in such a report:
#
# * **registers**: at most 255 per thread. What does not fit is **spilled** to memory, and a memory-bound kernel then
#   moves more than we counted.
# * **occupancy**: how many blocks a multiprocessor holds at once. A load takes hundreds of cycles, during which other
#   warps can work. With few warps there are few loads in flight, and the memory is not kept busy.
# * **16-byte loads**: a thread reads 8 bfloat16 numbers at once. 2-byte loads would need eight times as many
#   instructions.
#
# ## And measured?
#
# A floor is a lower bound; only measurements tell how close a kernel comes. `python -m ernie_m.kernels bench --output
# DIR` times the kernels on a GPU and saves the results. None are committed yet; once they are in
# `kernels/benchmark/results`, the next cell shows them beside their floors. (Those floors use the rates measured on
# that GPU, which are below the data sheet's.)

# %%
results = sorted((Path(kernels.__file__).parent / "benchmark" / "results").rglob("bench.json"))
if not results:
    print("No benchmark results are committed yet, so there is nothing to compare with the floors.")
for path in results:
    saved = json.loads(path.read_text())
    rows = [row for row in saved["rows"] if row.get("ours_s") and row["median_s"] == row["ours_s"]]
    rows = [row for row in rows if (row["size"], row["dtype"]) == ("base", "bfloat16")]
    print(saved["environment"].get("gpu"), "- floor / measured time of our kernels, base model, bfloat16:")
    for row in rows:
        share = row["floor_s"] / row["median_s"]
        microseconds = float(f"{1e6 * row['median_s']:.3g}")
        print(f"  {row['what']:22} {row['batch']:8} {microseconds:9g} µs  {share:4.0%}  {'#' * int(30 * share)}")

# %% [markdown]
# ## What to try next
#
# * Take one sequence of 128 tokens (`BATCHES["one"]`): what does the layer wait for now, and why? Look at the bytes of
#   the weights.
# * At which number of tokens does `ffn1` change from memory-bound to compute-bound?
# * Take the large model (`SIZES["large"]`): what is the share of the matrix products?
# * `python -m ernie_m.kernels compile --operation packed_attention --target sm_90` (a minute or so) prints instructions
#   per element, which is a score here. With 16 exp2 per cycle and multiprocessor, how long do the scores of 64 x 512
#   take?
# * Next: [08_layer_parity](08_layer_parity.ipynb), about the whole model, and how to know that it is right.
