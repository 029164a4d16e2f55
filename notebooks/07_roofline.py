# %% [markdown]
# # 07 · The roofline
#
# **Question.** How fast can the model be at all, which steps are slow by nature, and what can fusing buy?
#
# A GPU does two things: it computes, and it moves bytes. Each step of the model needs so much of one and so much of the
# other, and both can be counted with a pencil. From them follows the least time that the step can take, before anybody
# has written a kernel.
#
# *To run this elsewhere:* clone the repository, `pip install ".[notebooks]"`, `jupyter lab notebooks`. Triton is
# published for Linux: on Windows use WSL, on a Mac a container.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ernie_m import kernels
from ernie_m.kernels.benchmark import work as bench_cases
from ernie_m.kernels.benchmark.work import BATCHES, SIZES, Work

# An NVIDIA H100 (SXM), from its data sheet: bfloat16 operations of the tensor cores, and bytes of main memory.
MATRIX_RATE, MEMORY_RATE = 989e12, 3.35e12

# %% [markdown]
# ## Operations and bytes
#
# A matrix product of (T, n) and (n, m) takes 2·T·n·m operations: for each of T·m results, n products and n additions.
# It reads both matrices and writes the third, in bfloat16 with 2 bytes a number. The quotient is the **intensity**:
# operations for each byte.
#
# The batch for all that follows is ragged, as text is: 64 rows of 128 tokens in the mean, 8,192 in all. Only tokens are
# counted, no padding.
#
# **Prediction.** q, k and v come from one product, (8192, 768) and (768, 2304). How many operations, how many bytes,
# and which intensity? The H100 can do 989 / 3.35 = 295 operations in the time that it moves one byte. Which of the two
# does this step wait for?

# %%
base, batch, width = SIZES["base"], BATCHES["ragged"], 2
T, E, F, H = batch.tokens, base.hidden, base.inner, base.heads
qkv = dict(bench_cases.products(base, T, width))["qkv"]
assert qkv.flops == 2 * T * E * 3 * E
assert qkv.bytes == 2 * (T * E + E * 3 * E + T * 3 * E)
print(f"{T} tokens: {qkv.flops / 1e9:.1f} GFLOP, {qkv.bytes / 1e6:.1f} MB, intensity {qkv.flops / qkv.bytes:.0f}")
print(f"computing takes {qkv.flops / MATRIX_RATE * 1e6:.0f} µs, moving {qkv.bytes / MEMORY_RATE * 1e6:.0f} µs")

# %% [markdown]
# The longer of the two is the **floor**. Whoever waits for computing is *compute-bound*, the others *memory-bound*. Now
# the whole layer. (Add + LayerNorm makes the 3 passes that notebook 05 counted; GELU reads and writes, which is 2.)
#
# **Prediction.** Of the steps qkv, out, ffn1, ffn2, attention, GELU and LayerNorm, which are memory-bound? And what
# part of a layer's time is matrix products?

# %%
steps: dict[str, Work] = dict(bench_cases.products(base, T, width))
steps["attention"] = bench_cases.attention(base, batch, width)
steps["bias_gelu"] = bench_cases.bias_gelu(base, T, width)
# About 25 and 12 operations for each number, which ordinary cores do, and not the tensor cores: for the picture only.
arithmetic = {"bias_gelu": 25 * T * F, "2 x add_layer_norm": 2 * 12 * T * E}
norm = bench_cases.add_layer_norm(base, T, width)
steps["2 x add_layer_norm"] = Work(2 * norm.flops, 2 * norm.bytes)

floors = {name: work.floor(MATRIX_RATE, MEMORY_RATE) for name, work in steps.items()}
layer = sum(floors.values())
print(f"{'':18}  {'GFLOP':>6}  {'MB':>5}  {'floor, µs':>9}  {'share':>5}  waits for")
for name, work in steps.items():
    bound = "computing" if work.flops / MATRIX_RATE > work.bytes / MEMORY_RATE else "memory"
    cells = f"{work.flops / 1e9:6.1f}  {work.bytes / 1e6:5.0f}  {floors[name] * 1e6:9.0f}  {floors[name] / layer:5.0%}"
    print(f"{name:18}  {cells}  {bound}")
print(f"a layer: {layer * 1e6:.0f} µs; {base.layers} layers: {base.layers * layer * 1e3:.1f} ms")
products = sum(floors[name] for name in ("qkv", "out", "ffn1", "ffn2")) / layer
assert 0.6 < products < 0.85

# %% [markdown]
# The picture has both limits in it, and gives the method its name. A step can be anywhere below the roof, never above.

# %%
intensity = np.logspace(0, 3.5, 100)
figure, axes = plt.subplots(figsize=(6.5, 3.4), dpi=80)
axes.loglog(intensity, np.minimum(MATRIX_RATE, intensity * MEMORY_RATE) / 1e12, color="black")
for marker, (name, work) in zip("os^vDPX", steps.items(), strict=True):
    x = max(work.flops, arithmetic.get(name, 0)) / work.bytes
    axes.plot(x, min(MATRIX_RATE, x * MEMORY_RATE) / 1e12, marker, label=f"{name} ({x:.0f})")
axes.set(xlabel="operations for each byte", ylabel="TFLOP/s at most", title="H100, bfloat16, base model, 8,192 tokens")
axes.legend(fontsize=7)
plt.show()

# %% [markdown]
# ## What can fusing buy?
#
# Fusing leaves the operations as they are and saves bytes. So it helps where a step is memory-bound, and buys nothing
# where it is compute-bound. Count what an implementation moves that fuses nothing, one operation after the other:
#
# * the bias, then GELU: 4 passes over (T, F), not 2;
# * bias, residual, LayerNorm: 7 passes over (T, E), not 3, twice in a layer (notebook 05);
# * attention: scores and probabilities of every head are each written and read, Σn² · H numbers (notebook 06).
#
# **Prediction.** Two ways to be faster: (a) fuse all of this; (b) leave padding out, where a rectangle of 64 x 512
# would be computed. Which buys more, and how much does each buy at most?

# %%
rectangle = BATCHES["dense"]  # 64 x 512: what the ragged batch becomes when it is padded


def layer_floor(of: bench_cases.Batch, fused: bool) -> float:
    """The least time of a layer, in seconds."""
    T = of.tokens
    attend = bench_cases.attention(base, of, width)
    total = sum(work.floor(MATRIX_RATE, MEMORY_RATE) for _, work in bench_cases.products(base, T, width))
    if fused:
        elementwise = bench_cases.bias_gelu(base, T, width).bytes + 2 * bench_cases.add_layer_norm(base, T, width).bytes
        return total + attend.floor(MATRIX_RATE, MEMORY_RATE) + elementwise / MEMORY_RATE
    elementwise = (4 * T * F + 2 * 7 * T * E) * width
    scores = 4 * of.pairs * H * width
    return total + (attend.bytes + scores + elementwise) / MEMORY_RATE


print(f"{'µs for a layer':16}  {'unfused':>8}  {'fused':>6}  {'fusing buys':>11}")
times = {}
for name, of in (("padded", rectangle), ("packed", batch)):
    times[name] = unfused, fused = [1e6 * layer_floor(of, fused) for fused in (False, True)]
    print(f"{name:16}  {unfused:8.0f}  {fused:6.0f}  {unfused / fused:9.1f} x")
packing = times["padded"][1] / times["packed"][1]
print(f"packing buys {packing:.1f} x, both together {times['padded'][0] / times['packed'][1]:.1f} x")
assert packing > times["padded"][0] / times["padded"][1] > 1.2
assert abs(times["packed"][1] / 1e6 / layer - 1) < 1e-9

# %% [markdown]
# Work that is not done is the fastest. After that, fusing is worth its while, above all in attention on long rows. And
# once all is fused, the rest is matrix products: even a GELU that took no time at all would make the layer faster by
# its share in the table above, and no more. That is what a floor is good for: it says when to stop.
#
# ## A third limit: instructions
#
# "GELU is memory-bound" is only true if its arithmetic is cheap enough. The tensor cores do not help with GELU;
# ordinary instructions do it. An H100 has 132 multiprocessors with 4 schedulers each; a scheduler issues one
# instruction for 32 threads in each clock cycle, at 1.755 GHz.
#
# **Prediction.** GELU reads 2 bytes and writes 2 for each number. How many instructions for each number can the GPU
# issue in the time that this takes? With the library's error function the kernel would need 38.

# %%
issued = 132 * 4 * 32 * 1.755e9  # instructions of one thread, in a second
room = 4 / MEMORY_RATE * issued
print(f"room for {room:.0f} instructions for each number")
assert 30 < room < 38

# %% [markdown]
# So 38 would be too many, and this is why the room's kernel has an error function of its own. How many does it take?
# The room compiles its kernels for GPUs without one, and counts in the machine code. This takes about ten seconds. The
# command line, if you want more of it: `python -m ernie_m.kernels compile`.

# %%
command = [sys.executable, "-m", "ernie_m.kernels", "compile", "--json", "--target=sm_90", "--dtype=bfloat16"]
command += ["--operation=bias_gelu", "--operation=add_layer_norm"]
# A kernel is either interpreted or compiled: if this process interprets, the other must not.
compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
report = json.loads(subprocess.run(command, env=compiling, check=True, capture_output=True, text=True).stdout)
of_base = {row["operation"]: row for row in report["kernels"] if row["label"] in ("F=3072", "E=768")}
for name, row in of_base.items():
    # A row's are counted for a whole warp of 32 threads. LayerNorm moves three numbers where GELU moves two.
    each, there = row["instructions_per"], room
    if row["per"] == "row":
        each, there = each * 32 / E, room * 3 / 2
    print(f"{name}: no more instructions than there is room for: {each < there}; spills: {row['spills']} bytes")
    assert each < there and row["spills"] == 0

# %% tags=["varies"]
for name, row in of_base.items():
    print(f"{name:15} {row['instructions_per']:6.1f} instructions for each {row['per']}, {row['registers']} registers")
    print(f"{'':15} {row['occupancy']} blocks of {row['num_warps']} warps at once, {row['loads_16']} loads of 16 bytes")

# %% [markdown]
# What to read in such a report:
#
# * **registers**, 255 for a thread at most. What does not fit is **spilled** to memory, and a memory-bound kernel then
#   moves more than we counted.
# * **occupancy**, how many blocks a multiprocessor holds at once. A load takes hundreds of cycles; other warps work
#   meanwhile. Few warps, few loads on their way, and the memory is not kept busy.
# * **16-byte loads**: a thread reads 8 bfloat16 numbers at once. 2-byte loads would need eight times the instructions.
#
# ## And measured?
#
# A floor is a promise that nobody has kept yet. `python -m ernie_m.kernels bench --output DIR` times kernels on a GPU
# and saves what it found. If results are committed with the room, here they are, beside their floors (with the rates
# that were measured on that GPU, which are below the data sheet's).

# %%
results = sorted((Path(kernels.__file__).parent / "results").rglob("bench.json"))
if not results:
    print("No benchmark results are committed: there is nothing measured to set beside the floors yet.")
for path in results:
    saved = json.loads(path.read_text())
    rows = [row for row in saved["rows"] if row.get("ours_s") and row["median_s"] == row["ours_s"]]
    rows = [row for row in rows if (row["size"], row["dtype"]) == ("base", "bfloat16")]
    print(saved["environment"].get("gpu"), "- share of the floor that our kernels reach, base model, bfloat16:")
    for row in rows:
        share = row["floor_s"] / row["median_s"]
        microseconds = float(f"{1e6 * row['median_s']:.3g}")
        print(f"  {row['what']:22} {row['batch']:8} {microseconds:9g} µs  {share:4.0%}  {'#' * int(30 * share)}")

# %% [markdown]
# ## What to try next
#
# * One sequence of 128 tokens (`BATCHES["one"]`): what does the layer wait for now, and why? Look at the bytes of the
#   weights.
# * At which number of tokens does `ffn1` change from memory-bound to compute-bound?
# * The large model (`SIZES["large"]`): which share do the matrix products have?
# * `python -m ernie_m.kernels compile --operation packed_attention --target sm_90` (a minute or so): instructions for
#   each score. With exp2 at 16 a cycle and multiprocessor, how long do the scores of 64 x 512 take?
# * Next: `08_layer_parity`: the whole model, and how to know that it is right.
