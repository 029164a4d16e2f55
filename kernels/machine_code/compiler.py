"""One kernel compiled for one GPU target, and what the machine code says about it. No GPU is needed, and no CUDA:
Triton's own package has the assembler (ptxas) and the disassembler (cuobjdump).

A launch compiles for the arguments it is given: that a pointer is a multiple of 16 bytes, as every new tensor's is,
turns 2-byte loads into 16-byte loads. The same is said here. The registers are those that ptxas reports while Triton
runs it, with Triton's own options.

Nothing in Triton's compiler compares shared memory with what the GPU has: a launch is where it would fail.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import io
import os
import re
import subprocess
import tempfile
import time
import unittest.mock
from typing import Any

from ..runtime.optional_triton import HAS_TRITON, triton
from ..runtime.variants import Variant
from . import listing as compile_listing
from .figures import TARGETS, Target, amdgcn_figures, occupancy, ptx_load_widths, ptxas_figures, tensor_cores


class Depth(enum.IntEnum):
    """How far to compile: each step takes about as long again as all before it, and tells more."""

    MEMORY = 0  # shared memory
    CODE = 1  # registers, spills, tensor cores, loads
    LISTING = 2  # instructions


def compile_kernel(variant: Variant, target: str, depth: Depth = Depth.LISTING) -> dict[str, Any]:
    """Compile for one of TARGETS; the metrics that the report prints, as JSON has them, down to `depth`.

    `instructions` counts the hot loop if `variant.loop`, else the whole kernel; `instructions_per` is what falls on
    one of the `tile`'s elements or, where threads share an element (`per`: "row"), the warps' instructions for it.

    Must run in a process whose Triton is not interpreted. Raises RuntimeError where Triton or its tools are missing.
    """
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: kernels cannot be compiled")
    if not isinstance(variant.kernel, triton.runtime.JITFunction):
        raise RuntimeError("kernels are interpreted in this process: TRITON_INTERPRET was set when triton was imported")
    begin = time.perf_counter()
    gpu = TARGETS[target]
    if depth == Depth.MEMORY:
        figures = {"shared": shared_memory(variant, gpu)}
    else:
        compiled, log = _compile(variant, gpu)
        figures = _of_cuda(compiled, log, gpu) if gpu.backend == "cuda" else _of_hip(compiled, gpu)
        if depth == Depth.LISTING:
            figures.update(_instructions(variant, compiled, gpu))
    return {
        "operation": variant.operation,
        "dtype": variant.dtype,
        "label": variant.label,
        "target": target,
        "blocks": dict(variant.configuration.blocks),
        "num_warps": variant.configuration.num_warps,
        "num_stages": variant.configuration.num_stages,
        "loop": variant.loop,
        "shared_limit": gpu.shared_limit,
        **figures,
        "seconds": round(time.perf_counter() - begin, 3),
    }


def _source(variant: Variant, gpu: Target) -> Any:
    """The kernel, specialised as a launch with new tensors specialises it."""
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.signature[name] for name in names}
    of_pointer = [["tt.divisibility", 16]]
    if gpu.backend == "hip":
        # Tensors below 2 GiB: their offsets fit 32 bits.
        of_pointer.append(["tt.pointer_range", 32])
    return triton.compiler.ASTSource(
        variant.kernel,
        signature=signature,
        constexprs=dict(variant.constants),
        attrs={(i,): of_pointer for i, name in enumerate(names) if signature[name].startswith("*")},
    )


def _compile(variant: Variant, gpu: Target) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas printed."""
    target = triton.backends.compiler.GPUTarget(gpu.backend, gpu.arch, gpu.warp)
    source = _source(variant, gpu)
    log = io.StringIO()
    knobs = triton.knobs
    # A kernel that lies in Triton's cache would come without ptxas's report: it is compiled into a cache of its own.
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(source, target=target, options=variant.configuration.options)
    return compiled, log.getvalue()


class _Enough(Exception):
    """Ends a compilation as soon as the shared memory is known."""


def shared_memory(variant: Variant, gpu: Target) -> int:
    """Bytes of shared memory of a block. The compiler settles them before it goes over to LLVM, and is stopped there:
    what follows takes most of its time."""
    target = triton.backends.compiler.GPUTarget(gpu.backend, gpu.arch, gpu.warp)
    module = importlib.import_module(type(triton.compiler.make_backend(target)).__module__)

    def stop(lowered: Any, context: Any) -> None:
        raise _Enough(lowered.get_int_attr("ttg.shared"))

    with unittest.mock.patch.object(module.llvm, "to_module", stop):
        try:
            _compile(variant, gpu)
        except _Enough as enough:
            return int(enough.args[0])
    raise RuntimeError("triton's compiler was expected to make an LLVM module, and did not")


def _of_cuda(compiled: Any, log: str, gpu: Target) -> dict[str, Any]:
    figures, text = ptxas_figures(log), compiled.asm["ptx"]
    shared, columns = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", 0) or 0
    threads = gpu.warp * compiled.metadata.num_warps
    widths = ptx_load_widths(text)
    return {
        **figures,
        "shared": shared,
        "occupancy": occupancy(gpu, threads, figures["registers"], shared, columns),
        "tensor_cores": tensor_cores(text),
        "loads_16": sum(width >= 16 for width in widths),
        "loads_2": widths.count(2),
    }


def _of_hip(compiled: Any, gpu: Target) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]
    figures = amdgcn_figures(text)
    shared = max(compiled.metadata.shared, figures.pop("group_segment"))
    # LLVM's occupancy is in wavefronts for each of the four units that make a compute unit.
    fits = [figures.pop("waves") * 4 // compiled.metadata.num_warps]
    if shared:
        fits.append(gpu.shared_total // shared)
    return {
        **figures,
        "warnings": [],
        "shared": shared,
        "occupancy": min(fits),
        "tensor_cores": tensor_cores(text),
        "loads_16": len(re.findall(r"\b(?:global|buffer)_load_(?:dwordx4|b128)\b", text)),
        "loads_2": len(re.findall(r"\b(?:global|buffer)_load_(?:[us]?short\w*|[us]16|d16\w*)\b", text)),
    }


def _instructions(variant: Variant, compiled: Any, gpu: Target) -> dict[str, Any]:
    if gpu.backend == "cuda":
        instructions = compile_listing.parse_sass(_disassemble(compiled.asm["cubin"]))
    else:
        instructions = compile_listing.parse_amdgcn(compiled.asm["amdgcn"])
    counted = compile_listing.hot_loop(instructions) if variant.loop else compile_listing.body(instructions)
    if not counted:
        raise RuntimeError(f"{variant.operation} {variant.label}: expected a loop in the machine code, found none")
    warps = compiled.metadata.num_warps
    per_row = variant.tile < gpu.warp * warps
    per = len(counted) * warps * (1 if per_row else gpu.warp) / variant.tile
    return {
        "instructions": len(counted),
        "instructions_per": round(per, 2),
        "per": "row" if per_row else "element",
    }


def _disassemble(cubin: bytes) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    # cuobjdump finds nvdisasm on the PATH: both lie in one folder.
    environment = {**os.environ, "PATH": os.pathsep.join((os.path.dirname(tool), os.environ.get("PATH", "")))}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"cuobjdump failed: {result.stderr.strip()}")
    return result.stdout
