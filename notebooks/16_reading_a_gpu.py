# %% [markdown]
# # 16 · Reading a GPU
#
# **Question.** What can you learn about a kernel's speed from its machine code, before any GPU has run it?
#
# Triton's package contains the assembler and the disassembler for NVIDIA's GPUs. So kernels can be compiled on a laptop
# without a GPU, and the result says how many registers a thread needs, how it loads, and how many instructions it
# executes. Notebook 07 looked at such a report briefly. Here we learn to read it: one operation, four versions, and a
# prediction before every figure.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`. Triton is
# published for Linux: use WSL on Windows, a container on a Mac.

# %%
import os

# In this process, kernels run in Triton's interpreter. Another process compiles them, without it.
os.environ["TRITON_INTERPRET"] = "1"

import inspect
import json
from pathlib import Path

import layer_norm_versions as versions
import matplotlib.pyplot as plt
import numpy as np
import torch

from ernie_m import kernels
from ernie_m.kernels.checking import verdicts
from ernie_m.kernels.checking.operations import fixed_case
from ernie_m.kernels.machine_code import advice, record, rows_of
from ernie_m.kernels.machine_code.children import tensors
from ernie_m.kernels.runtime import interpreter

interpreter.install()

# %% [markdown]
# ## One operation, four versions
#
# The operation is that of notebook 05, y = LayerNorm(x + bias + residual), on rows of E = 1,024 bfloat16 numbers, as in
# the large model. There are two kernels, in [layer_norm_versions.py](layer_norm_versions.py):
#
# * `naive_kernel` gives a row to 1,024 threads, so that each thread has *one* number. E is an ordinary argument, and
#   all offsets are 64-bit integers.
# * `rows_kernel` gives ROWS rows to one warp of 32 threads. E is a constant. With one row, a thread has 32 numbers;
#   with four, 128, and with eight, 256.

# %%
for kernel in (versions.naive_kernel, versions.rows_kernel):
    print(inspect.getsource(kernel.fn))

# %% [markdown]
# Machine code of a wrong kernel is worth nothing, so first: do all versions compute LayerNorm? The project's fixed data
# and bounds decide (notebook 04).

# %%
NAMES = ("naive", "one_row", "four_rows", "eight_rows")
case, inputs = fixed_case("add_layer_norm", "bfloat16"), tensors("add_layer_norm", "bfloat16")
for name in NAMES:
    y = getattr(versions, name)(*inputs).double().numpy()
    holds = all(verdict.holds for verdict in verdicts.judge(y, case.expected, statistical=True))
    print(f"{name:10} within the bounds: {holds}")
    assert holds

# %% [markdown]
# ## What the compiler is told
#
# Triton compiles a kernel for the types of its arguments, for what it knows of their alignment, and for its constants.
# `record` calls a function and notes these for each launch. In the lines below, `*bf16:16` is a pointer to bfloat16
# whose address is a multiple of 16, and `i32:16` is an integer that is a multiple of 16. What stands after `=` is a
# constant: the compiler can compute with it.

# %%
E, width = 1024, 2
x, vector = torch.zeros(16, E, dtype=torch.bfloat16), torch.zeros(E, dtype=torch.bfloat16)
launches = []
for name in NAMES:
    [launch] = record(getattr(versions, name), x, vector, x, vector, vector, 1e-5)
    launches.append(launch)
print(launches[0])
print(launches[1])

# %% [markdown]
# ## Loads
#
# A thread can load up to 16 bytes with one instruction, eight bfloat16 numbers that are next to each other.
#
# **Prediction.** The kernels read x, residual, bias, γ and β. With one row per warp, a thread has 32 numbers of each.
# How many loads of 16 bytes does it need? How many with eight rows? (The three vectors are needed only once.) And what
# does the naive kernel do, whose threads have one number each?
#
# This compiles the four versions for sm_90 (H100 and H200), and takes about ten seconds.

# %%
rows = dict(zip(NAMES, rows_of(launches, ["sm_90"]), strict=True))
for name, row in rows.items():
    print(f"{name:10} loads of 16 bytes: {row['loads_16']:2}, of 2 bytes: {row['loads_2']}")

# %% [markdown]
# One row takes 5 · 32 · 2 / 16 = 20 loads. Eight rows take 2 · 8 · 4 for x and the residual, and 3 · 4 for the vectors.
# The naive kernel has five loads of 2 bytes per thread: an eighth of what one instruction could do. Even perfect
# alignment does not help a thread that has only one number. The project's tool notices the loads, but it can only guess
# the reason:

# %%
print(*advice(rows["naive"]))
R = {name: launch.constants.get("ROWS", 1) for name, launch in zip(NAMES, launches, strict=True)}
for name in NAMES[1:]:
    assert (rows[name]["loads_16"], rows[name]["loads_2"]) == ((2 * R[name] + 3) * 32 * width // 16, 0)
assert (rows["naive"]["loads_16"], rows["naive"]["loads_2"]) == (0, 5)

# %% [markdown]
# ## Registers
#
# A row stays in registers from the load to the store: mean and variance need all of it before the first number can be
# written. In float32, each number takes one 32-bit register. A thread has at most 255 registers; what does not fit is
# *spilled* to memory.
#
# **Prediction.** One row per warp takes 32 registers for its numbers, and some more for addresses and the rest. How
# many in all? Which of 1, 4 and 8 rows will spill?

# %% tags=["varies"]
print(f"{'':10}  registers  spills, bytes  instructions")
for name, row in rows.items():
    print(f"{name:10}  {row['registers']:9}  {row['spills']:13}  {row['instructions']:12}")

# %%
by_rows = [rows[name] for name in NAMES[1:]]
row_counts = np.array([R[name] for name in NAMES[1:]])
registers, spills = (np.array([row[key] for row in by_rows]) for key in ("registers", "spills"))
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
left.plot(row_counts, 32 * row_counts, "--", color="0.6", label="the numbers alone, 32 per row")
left.plot(row_counts, registers, "o-", label="registers of a thread")
left.axhline(255, color="black", linestyle=":", label="at most 255")
left.set(xlabel="rows per warp", ylabel="registers", xticks=row_counts)
left.legend(fontsize=8)
right.bar(row_counts.astype(str), spills * 32 / row_counts, label="spills")
right.axhline(3 * E * width, color="C1", label="x, residual and y")
right.set(xlabel="rows per warp", ylabel="bytes per row")
right.legend(fontsize=8)
plt.show()
print("spills:", *(f"{n} rows {bool(s)}" for n, s in zip(row_counts, spills, strict=True)), sep="  ")

# %% [markdown]
# Registers grow by 32 or a little more with each row, on top of some 30. Eight rows would need 256 for the numbers
# alone, so they must spill. The right figure compares the spills, stores and loads together, with the bytes that the
# operation has to move anyway: they are of a similar size. Caches catch a part of the spills, but the point of the
# kernel was to keep the row out of memory.
#
# The report gives these figures to the last digit, but another version of Triton gives others, by several per cent.
# What lasts is the reasoning: *numbers per thread, times their size, plus some thirty*.

# %%
assert not spills[:2].any() and spills[2] > 0 and registers[2] >= 250
assert all(20 < r - 32 * n < 60 for n, r in zip(row_counts[:2], registers[:2], strict=True))

# %% [markdown]
# ## Instructions per element
#
# All 32 threads of a warp execute the same instruction together. The listing of a kernel without loops has every
# instruction that a warp executes, once, so we can count: (instructions · threads of the block) / (numbers of the
# block).
#
# How many can we afford? For each element the operation moves 6 bytes (x, residual, y). An H100 moves 3.35 TB/s, and
# issues 132 · 4 instructions for 32 threads per cycle at 1.83 GHz (notebook 07).
#
# **Prediction.** How many instructions per element is that? And which versions need more?

# %%
affordable = 3 * width / 3.35e12 * 132 * 4 * 32 * 1.83e9
per_element = {name: row["instructions"] * row["num_warps"] * 32 / (R[name] * E) for name, row in rows.items()}
print(f"time for {affordable:.0f} instructions per element")
for name, count in per_element.items():
    print(f"{name:10} needs less: {count < affordable}")
assert per_element["naive"] > 2 * affordable and max(per_element[name] for name in NAMES[1:]) < affordable / 2

# %% [markdown]
# The naive kernel executes more than twice as many instructions as there is time for. It should wait for memory, but it
# waits for its own instructions. Each thread reads the kernel's arguments, computes 64-bit addresses and takes part in
# two sums over the whole block, all for a single number. With 32 numbers per thread, they share all this.
#
# After that, more rows per warp gain little: they share only the loads of the three vectors.
#
# ## Occupancy, by hand
#
# While a warp waits for its loads, a multiprocessor works on others. How many fit is the *occupancy*. Four limits apply
# on sm_90, and the smallest counts:
#
# * 65,536 registers: a warp takes 32 times the registers of a thread, rounded up to a multiple of 8;
# * 2,048 threads, that is, 64 warps;
# * 32 blocks;
# * 228 KB of shared memory: what a block uses, and 1 KB for the system.
#
# **Prediction.** The naive kernel has about 20 registers per thread and blocks of 32 warps. With one row per warp, it
# has about 64 registers and blocks of one warp. How many *warps* does a multiprocessor hold in each case? Which limit
# is it?


# %%
def blocks(registers, warps, shared):
    """How many blocks fit by each of the four limits."""
    of_warp = -(-registers // 8) * 8 * 32
    by_memory = 228 * 1024 // (shared + 1024)
    return {"registers": 65536 // of_warp // warps, "threads": 64 // warps, "blocks": 32, "shared memory": by_memory}


limits = {name: blocks(row["registers"], row["num_warps"], row["shared"]) for name, row in rows.items()}
held = {name: min(limits[name].values()) * rows[name]["num_warps"] for name in NAMES}
for name in NAMES:
    assert min(limits[name].values()) == rows[name]["occupancy"]
print("the report agrees for all versions")
print(f"of 64 warps, the naive kernel has {held['naive']}, and eight rows per warp have {held['eight_rows']}")

# %% tags=["varies"]
print("blocks that fit by each limit:")
for name in NAMES:
    counts = "  ".join(f"{limit}: {n:3}" for limit, n in limits[name].items())
    print(f"{name:10}  {counts}   warps held: {held[name]}")

# %% [markdown]
# So the naive kernel has an occupancy of 100 %, and the better version has 50 % at most: 32 blocks of one warp. Is high
# occupancy not the goal?
#
# No. The goal is to have enough *bytes* on their way. Main memory delivers 3.35 TB/s / 132 = 25 bytes per nanosecond to
# each multiprocessor, and a load takes several hundred nanoseconds when the memory is busy. The bytes in flight,
# divided by 25, are the time that can be bridged.
#
# **Prediction.** Before it can do anything else, a thread loads its numbers of x and residual. How many bytes are in
# flight on a multiprocessor at most, in the naive kernel and with one row per warp?

# %%
numbers = {name: R[name] * E // (32 * rows[name]["num_warps"]) for name in NAMES}  # per thread
flying = {name: held[name] * 32 * numbers[name] * 2 * width for name in NAMES}
shown = {"warps on a multiprocessor": held, "KB in flight at most": {name: n / 1000 for name, n in flying.items()}}
shown["instructions per element"] = per_element
figure, axes = plt.subplots(1, 3, figsize=(11, 2.6), sharey=True, layout="constrained")
for ax, (label, values) in zip(axes, shown.items(), strict=True):
    ax.barh(NAMES, [values[name] for name in NAMES])
    ax.set_xlabel(label)
axes[2].axvline(affordable, color="black", linestyle=":", label="affordable")
axes[2].legend()
axes[0].invert_yaxis()
plt.show()
bridged = flying["naive"] / (3.35e12 / 132) * 1e9
print(f"naive: {flying['naive']} bytes in flight bridge {bridged:.0f} ns")
print("one row per warp has more than ten times as many:", flying["one_row"] > 10 * flying["naive"])
assert held["naive"] == 64 and held["one_row"] <= 32 and flying["one_row"] > 10 * flying["naive"]

# %% [markdown]
# All warps of the naive kernel together have 8 KB in flight, enough for about 320 ns. With one row per warp there are
# half as many warps, but each thread has 32 times as much on its way, so there is room to spare. More rows per warp add
# what is not needed, and cost registers.
#
# The project's kernel gives each row of up to 1,024 numbers to one warp, and each warp one row. The reasons for it are
# above, and none of them needed a GPU.
#
# ## And measured?
#
# These figures are reasons, not times. They do not show cache hits, how the scheduler mixes warps, or what else slows
# memory down. Only a GPU tells whether the ranking is right. With one, this checks a version and times it next to
# torch:
#
# ```console
# $ python -m ernie_m.kernels bench notebooks/layer_norm_versions.py:one_row --op add_layer_norm
# ```
#
# No measured points are committed to the project yet. Once there are some in `kernels/benchmark/results`, the next cell
# draws them beside the floor.

# %%
results = sorted((Path(kernels.__file__).parent / "benchmark" / "results").rglob("bench.json"))
if not results:
    print("No benchmark results are committed yet: nothing to draw.")
for path in results:
    saved = json.loads(path.read_text())
    found = [row for row in saved["rows"] if row["what"] == "add_layer_norm" and row.get("median_s")]
    found = [row for row in found if (row["size"], row["dtype"]) == ("large", "bfloat16")]
    figure, ax = plt.subplots(figsize=(6, 0.5 + 0.25 * len(found)))
    labels = [f"{row['batch']}, {row['who']}" for row in found]
    ax.barh(labels, [1e6 * row["median_s"] for row in found], label="measured")
    ax.plot([1e6 * row["floor_s"] for row in found], labels, "k|", label="floor")
    ax.set(xlabel="µs", title=str(saved["environment"].get("gpu")))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()

# %% [markdown]
# ## What to try next
#
# * Compile for the other targets: `rows_of(launches, ["sm_80", "gfx942"])`. An AMD warp has 64 threads and a thread up
#   to 512 registers. Does the version with eight rows still spill?
# * Give `rows_kernel` four warps (`num_warps=4`). What happens to registers, shared memory and instructions per
#   element? Where do the sums of a row have to meet now?
# * Record a launch with rows of E = 1,022 numbers. What happens to the loads, and why can no compiler help?
# * Predict, then compile: how many rows per warp can you have in float32 before it spills?
# * Compile a kernel of your own: `python -m ernie_m.kernels compile FILE.py:NAME --help`. The exercise
#   [03_triton](exercises/03_triton.ipynb) has four to write.
