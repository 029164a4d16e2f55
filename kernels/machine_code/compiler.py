"""Compile one kernel for one GPU target and read the figures of its machine code. This needs neither a GPU nor CUDA:
Triton's package contains the assembler (ptxas) and the disassembler (cuobjdump).

A launch specialises a kernel for its arguments: pointers aligned to 16 bytes, as in every new tensor, turn 2-byte loads
into 16-byte loads. Kernels are specialised the same way here. The register counts are those that ptxas reports when
Triton runs it with its own options.

Triton's compiler does not compare a kernel's shared memory with the GPU's limit: only a launch would fail.
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
from . import listing
from .figures import (
    TARGETS,
    Target,
    amdgcn_figures,
    ir_figures,
    occupancy,
    ptx_load_widths,
    ptxas_figures,
    tensor_cores,
)


class Depth(enum.IntEnum):
    """How far to compile: each step adds figures and takes longer."""

    MEMORY = 0  # shared memory, and what Triton's own code shows
    CODE = 1  # registers, spills, tensor cores, loads
    LISTING = 2  # instructions


def compile_kernel(variant: Variant, target: str, depth: Depth = Depth.LISTING) -> dict[str, Any]:
    """Compile a variant for one of TARGETS, up to `depth`; return its figures, under the keys of the JSON report.

    `instructions` counts the hot loop if `variant.loop`, else the whole kernel. `instructions_per` is thread
    instructions per element of the tile or, where threads share an element (`per`: "row"), warp instructions per row;
    without a tile, instructions per warp. `dots` counts calls of tl.dot.

    Raises RuntimeError if Triton or one of its tools is missing, or if Triton's interpreter is on in this process.
    """
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: kernels cannot be compiled")
    if not isinstance(variant.kernel, triton.runtime.JITFunction):
        raise RuntimeError("kernels are interpreted in this process: TRITON_INTERPRET was set when triton was imported")
    begin = time.perf_counter()
    gpu = TARGETS[target]
    if depth == Depth.MEMORY:
        shared, text = lowered(variant, gpu)
        figures = {"shared": shared, **ir_figures(text, variant.dtype)}
    else:
        compiled, log = _compile(variant, gpu)
        figures = ir_figures(compiled.asm["ttgir"], variant.dtype)
        figures |= _of_cuda(compiled, log, gpu) if gpu.backend == "cuda" else _of_hip(compiled, gpu)
        figures["dots"] = compiled.asm["ttir"].count("tt.dot ")
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
    """The kernel, specialised as in a launch with new tensors."""
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.signature[name] for name in names}
    pointers = [name for name in names if signature[name].startswith("*")]
    aligned = pointers if variant.aligned is None else variant.aligned
    attributes = {name: [["tt.divisibility", 16]] for name in aligned}
    if gpu.backend == "hip":
        # Tensors below 2 GiB: their offsets fit 32 bits.
        attributes |= {name: [*attributes.get(name, []), ["tt.pointer_range", 32]] for name in pointers}
    return triton.compiler.ASTSource(
        variant.kernel,
        signature=signature,
        constexprs=dict(variant.constants),
        attrs={(i,): attributes[name] for i, name in enumerate(names) if name in attributes},
    )


def _compile(variant: Variant, gpu: Target) -> tuple[Any, str]:
    """Return the compiled kernel and the output of ptxas."""
    target = triton.backends.compiler.GPUTarget(gpu.backend, gpu.arch, gpu.warp)
    source = _source(variant, gpu)
    log = io.StringIO()
    knobs = triton.knobs
    # ptxas does not run, and prints no report, for a kernel in Triton's cache: an empty cache makes sure that it runs.
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(source, target=target, options=variant.configuration.options)
    return compiled, log.getvalue()


class _Lowering(Exception):
    """Raised where Triton would lower a kernel to LLVM; holds the passes up to there."""


class _Allocated(Exception):
    """Ends a compilation once shared memory is allocated; holds its bytes, and the code."""


def lowered(variant: Variant, gpu: Target) -> tuple[int, str]:
    """Bytes of shared memory per block, and the code until there. Triton allocates it just before it lowers a kernel to
    LLVM. Compilation stops there, because the rest takes most of the time."""
    backend = triton.compiler.make_backend(triton.backends.compiler.GPUTarget(gpu.backend, gpu.arch, gpu.warp))
    library = getattr(importlib.import_module(type(backend).__module__), "nvidia" if gpu.backend == "cuda" else "amd")
    make_llir = backend.make_llir

    def stop(pipeline: Any, *options: Any) -> None:
        raise _Lowering(pipeline)

    def allocate(_: Any, module: Any, *options: Any) -> None:
        text = str(module)
        try:
            make_llir(module, *options)
        except _Lowering as lowering:
            lowering.args[0].run(module, "shared_memory")
        raise _Allocated(module.get_int_attr("ttg.shared"), text)

    patch = unittest.mock.patch.object
    with patch(library.passes.ttgpuir, "add_to_llvmir", stop), patch(type(backend), "make_llir", allocate):
        try:
            _compile(variant, gpu)
        except _Allocated as allocated:
            return int(allocated.args[0]), allocated.args[1]
    raise RuntimeError("expected Triton to call make_llir, which allocates shared memory; it did not")


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
        "nan_maxima": len(re.findall(r"\bmax\.NaN\b", text)),
        "nan_minima": len(re.findall(r"\bmin\.NaN\b", text)),
        "loads_16": sum(width >= 16 for width in widths),
        "loads_2": widths.count(2),
    }


def _of_hip(compiled: Any, gpu: Target) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]
    figures = amdgcn_figures(text)
    shared = max(compiled.metadata.shared, figures.pop("group_segment"))
    # LLVM reports occupancy as wavefronts per SIMD unit; a compute unit has four.
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
        instructions = listing.parse_sass(_disassemble(compiled.asm["cubin"]))
    else:
        instructions = listing.parse_amdgcn(compiled.asm["amdgcn"])
    counted = listing.hot_loop(instructions) if variant.loop else listing.body(instructions)
    if not counted:
        raise RuntimeError(f"{variant.operation} {variant.label}: expected a loop in the machine code, found none")
    warps = compiled.metadata.num_warps
    if not variant.tile:
        return {"instructions": len(counted), "instructions_per": float(len(counted)), "per": "warp"}
    per_row = variant.tile < gpu.warp * warps
    per = len(counted) * warps * (1 if per_row else gpu.warp) / variant.tile
    return {
        "instructions": len(counted),
        "instructions_per": round(per, 2),
        "per": "row" if per_row else "element",
    }


def _disassemble(cubin: bytes) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    # cuobjdump looks for nvdisasm, which is in the same folder, on the PATH.
    environment = {**os.environ, "PATH": os.pathsep.join((os.path.dirname(tool), os.environ.get("PATH", "")))}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        result = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"cuobjdump failed: {result.stderr.strip()}")
    return result.stdout
