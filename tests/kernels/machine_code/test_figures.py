"""Figures from literal compiler reports, PTX and listings."""

from __future__ import annotations

import pytest

from ernie_m.kernels.machine_code.figures import (
    TARGETS,
    amdgcn_figures,
    occupancy,
    ptx_load_widths,
    ptxas_figures,
    tensor_cores,
)

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    1208 bytes stack frame, 1392 bytes spill stores, 1400 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1208 bytes cumulative stack size
"""


def test_ptxas_figures_reads_a_report() -> None:
    expected = {"registers": 255, "spills": 2792, "stack": 1208, "warnings": []}
    assert ptxas_figures(PTXAS) == expected


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x",
        "ptxas warning : setmaxnreg ignored to maintain minimum register requirement.",
    ],
)
def test_ptxas_figures_collects_warnings(line: str) -> None:
    assert ptxas_figures(f"{line}\n{PTXAS}")["warnings"] == [line]


def test_ptxas_figures_rejects_other_text() -> None:
    with pytest.raises(RuntimeError, match=r"ptxas: expected .*registers.* in its report, got ''"):
        ptxas_figures("")


@pytest.mark.parametrize(
    ("line", "widths"),
    [
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", [16]),
        ("ld.global.v8.b32 { %r1 }, [ %rd1 + 0 ];", [32]),
        ("@%p1 ld.global.L1::evict_last.L2::cache_hint.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ], %rd2;", [8]),
        ("ld.global.b16 { %rs1 }, [ %rd1 + 0 ];", [2]),
        ("ld.global.u16 %rs1, [%rd1];", [2]),
        ("ld.global.nc.v2.b16 {%rs1, %rs2}, [%rd1];", [4]),
        ("ld.global.f32 %f1, [%rd1];", [4]),
        ("ld.global.b64 { %rd1 }, [ %rd2 + 0 ];", [8]),
        ("cp.async.cg.shared.global [ %r92 + 0 ], [ %rd5 + 0 ], 0x10, %r93;", [16]),
        ("cp.async.ca.shared.global [ %r50 + 0 ], [ %rd5 + 0 ], 0x8, %r51;", [8]),
        ("cp.async.ca.shared.global [ %r50 + 0 ], [ %rd5 + 0 ], 4, 4;", [4]),
        ("ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];", []),
        ("st.global.b16 [%rd1], %rs1;", []),
        ("ld.param.b64 %rd1, [k_param_0];", []),
    ],
)
def test_ptx_load_widths_reads_every_form(line: str, widths: list[int]) -> None:
    assert ptx_load_widths(f"\t{line}\n") == widths


def test_tensor_cores_distinguishes_the_kinds() -> None:
    ptx = """
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 1;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 };
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 };
    """
    assert tensor_cores(ptx) == {"wgmma": 1, "mma.sync": 2}
    assert tensor_cores("@p tcgen05.mma.cta_group::1.kind::f16 [ %r1 + 0 ];") == {"tcgen05": 1}
    assert tensor_cores("\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], 0") == {"mfma": 1}
    assert tensor_cores("wgmma.commit_group.sync.aligned;") == {}


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "columns", "blocks"),
    [
        ("sm_90", 256, 116, 49152, 0, 2),  # 120 · 256 registers: two blocks; 233,472 / 50,176 bytes would hold four
        ("sm_90", 128, 77, 24576, 0, 6),
        ("sm_90", 128, 85, 0, 0, 5),  # allocated as 88
        ("sm_90", 128, 32, 81920, 0, 2),
        ("sm_90", 32, 32, 0, 0, 32),
        ("sm_90", 1024, 32, 0, 0, 2),
        ("sm_80", 256, 32, 81920, 0, 2),
        ("sm_80", 256, 32, 166912, 0, 1),
        ("sm_80", 256, 32, 166913, 0, 0),
        ("sm_100", 128, 64, 24584, 256, 2),
        ("sm_100", 128, 64, 24584, 0, 8),
    ],
)
def test_occupancy_is_the_scarcest_resource(
    target: str, threads: int, registers: int, shared: int, columns: int, blocks: int
) -> None:
    assert occupancy(TARGETS[target], threads, registers, shared, columns) == blocks


def test_amdgcn_figures_reads_notes_and_comments() -> None:
    text = """
; Occupancy: 3
    .group_segment_fixed_size: 49152
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 1
    .vgpr_count:     168
    .vgpr_spill_count: 2
"""
    assert amdgcn_figures(text) == {"registers": 168, "spills": 12, "stack": 16, "group_segment": 49152, "waves": 3}
