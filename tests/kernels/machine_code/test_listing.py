"""Parsing listings, removing padding, and finding the hot loop."""

from __future__ import annotations

from ernie_m.kernels.machine_code.listing import Instruction, body, hot_loop, parse_amdgcn, parse_sass


def sass(*lines: str) -> str:
    """Lines as cuobjdump prints them, with dummy encodings."""
    return "\n".join(
        f"        /*{16 * i:04x}*/                   {line} ;    /* 0x0 */" for i, line in enumerate(lines)
    )


def test_parse_sass_reads_branches_predicates_and_ends() -> None:
    text = "\tFunction : k\n" + sass(
        "LDC R1, c[0x0][0x28]",
        "@!P0 BRA 0x30",
        "BRA.U UP0, 0x00",
        "@P1 EXIT",
        "BRA.DIV UR4, 0x10",
        "EXIT",
        "BRA 0x60",
        "NOP",
    )
    parsed = parse_sass(text)
    assert [x.opcode for x in parsed] == ["LDC", "BRA", "BRA.U", "EXIT", "BRA.DIV", "EXIT", "BRA", "NOP"]
    assert [x.target for x in parsed] == [None, 3, 0, None, 1, None, 6, None]
    assert [x.falls for x in parsed] == [True, True, True, True, True, False, False, True]


def test_body_drops_padding_and_the_branch_to_itself() -> None:
    parsed = parse_sass(sass("MOV R1, R2", "EXIT", "BRA 0x20", "NOP", "NOP"))
    assert [x.opcode for x in body(parsed)] == ["MOV", "EXIT"]


def loop(n: int, start: int, length: int) -> list[str]:
    """A listing of n instructions with one loop: `length` instructions from `start`."""
    lines = ["FADD R1, R2, R3"] * n
    lines[start + length - 1] = f"@P0 BRA 0x{16 * start:x}"
    return lines


def test_hot_loop_is_the_body_of_a_backward_branch() -> None:
    found = hot_loop(parse_sass(sass(*loop(60, 10, 30), "EXIT")))
    assert len(found) == 30
    assert found[-1].opcode == "BRA"


def test_hot_loop_of_straight_code_is_empty() -> None:
    assert hot_loop(parse_sass(sass("MOV R1, R2", "@P0 BRA 0x00000020", "EXIT", "BRA 0x30"))) == []
    assert hot_loop([]) == []


def test_hot_loop_is_the_inner_loop() -> None:
    lines = loop(100, 40, 20)
    lines[80] = "@P1 BRA 0x50"
    assert len(hot_loop(parse_sass(sass(*lines, "EXIT")))) == 20


def test_hot_loop_may_contain_a_wait() -> None:
    """A loop that contains a short wait for a barrier, inline or past the end, still counts as innermost."""
    lines = loop(100, 10, 60)
    lines[30] = "@!P2 BRA 0x1d0"
    lines[40] = f"@!P2 BRA 0x{16 * 101:x}"
    past_end = ["SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R0", f"@!P2 BRA 0x{16 * 101:x}", f"BRA 0x{16 * 41:x}"]
    found = hot_loop(parse_sass(sass(*lines, "EXIT", *past_end)))
    assert len(found) == 60 + len(past_end)


def test_hot_loop_ignores_branches_back_from_past_the_end() -> None:
    """Code past the end, entered by a branch and left by a branch back, is not a loop."""
    lines = ["FADD R1, R2, R3"] * 50
    lines[20] = f"@!P2 BRA 0x{16 * 51:x}"
    assert hot_loop(parse_sass(sass(*lines, "EXIT", *["MOV R1, R2"] * 20, "BRA 0x150"))) == []


def test_parse_amdgcn_follows_labels() -> None:
    text = """\t.text
k:                                      ; @k
; %bb.0:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
\ts_cbranch_scc1 .LBB0_3 ; rarely
.LBB0_1:                                ; =>This Inner Loop Header
\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[2:3], v[4:5], a[0:15]
\ts_add_i32 s4, s4, 1
\ts_cbranch_scc0 .LBB0_1
.LBB0_3:
\ts_endpgm
.Lfunc_end0:
\t.size\tk, .Lfunc_end0-k
"""
    parsed = parse_amdgcn(text)
    assert parsed[1] == Instruction("s_cbranch_scc1", 5, True)
    assert parsed[4] == Instruction("s_cbranch_scc0", 2, True)
    assert parsed[5] == Instruction("s_endpgm", None, False)
    assert len(parsed) == 6
