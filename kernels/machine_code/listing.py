"""Machine code as a list of instructions: parse a disassembler's output and find the hot loop.

A backward branch alone does not make a loop: compilers move rare code, such as the retry of a wait, past the end of the
kernel and branch back from there. A loop here is a natural loop: an instruction h and all instructions from which a
back edge to h is reached without passing h (F. Allen, "Control flow analysis", 1970).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# "        /*0f30*/              @!P0 BRA 0x9b0 ;      /* 0xfffffff400008947 */"
_SASS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);", re.MULTILINE)
# ".LBB0_2:     ; %loop" or "	s_cbranch_scc1 .LBB0_2"
_AMDGCN = re.compile(r"^(?:(\.?\w+):|\t([a-z]\w*)[ \t]*([^;\n]*))", re.MULTILINE)

# A loop that only waits for a barrier is shorter than this; a loop around it still counts as innermost.
_WAIT = 16


@dataclass(frozen=True)
class Instruction:
    """One instruction. `target`: the index that it may branch to; `falls`: it may continue with the next one."""

    opcode: str
    target: int | None
    falls: bool


def parse_sass(text: str) -> list[Instruction]:
    """Parse the output of `cuobjdump -sass` for a cubin with one kernel."""
    found = _SASS.findall(text)
    index = {int(address, 16): i for i, (address, *_) in enumerate(found)}
    instructions = []
    for _, predicate, opcode, operands in found:
        name = opcode.partition(".")[0]
        address = re.search(r"0x([0-9a-f]+)\s*\)?\s*$", operands) if name == "BRA" else None
        # "BRA.DIV UR4, 0x80" and "BRA.U UP0, 0x80" are conditional without an @.
        conditional = bool(predicate) or ("," in operands and name == "BRA")
        ends = name in ("BRA", "EXIT", "RET", "BRX", "JMX", "JMP")
        target = index.get(int(address[1], 16)) if address else None
        instructions.append(Instruction(opcode, target, conditional or not ends))
    return instructions


def parse_amdgcn(text: str) -> list[Instruction]:
    """Parse the assembly with one kernel that Triton keeps for an AMD GPU."""
    lines = [(label, opcode, operands.strip()) for label, opcode, operands in _AMDGCN.findall(text)]
    index: dict[str, int] = {}
    count = 0
    for label, opcode, _ in lines:
        if label:
            index[label] = count
        count += bool(opcode)
    return [
        Instruction(
            opcode,
            index.get(operands) if opcode.startswith(("s_branch", "s_cbranch")) else None,
            opcode not in ("s_branch", "s_endpgm", "s_setpc_b64"),
        )
        for _, opcode, operands in lines
        if opcode
    ]


def body(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The instructions without padding: NOPs, and the branch to itself after the end."""
    padding = ("NOP", "s_nop", "s_code_end")
    return [x for i, x in enumerate(instructions) if x.opcode not in padding and (x.target != i or x.falls)]


def hot_loop(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The largest innermost loop, in the order of the listing; empty if there is no loop."""
    loops = _loops(instructions)
    big = [loop for loop in loops if len(loop) > _WAIT]
    inner = [loop for loop in big if not any(other < loop for other in big)]
    return [instructions[i] for i in sorted(max(inner, key=lambda loop: len(loop), default=()))]


def _loops(instructions: Sequence[Instruction]) -> list[frozenset[int]]:
    """All natural loops, as indices of instructions; loops with the same first instruction are merged."""
    n = len(instructions)
    after: list[list[int]] = []
    before: list[list[int]] = [[] for _ in range(n)]
    for i, x in enumerate(instructions):
        steps = [j for j in (x.target, i + 1 if x.falls else None) if j is not None and j < n]
        after.append(steps)
        for j in steps:
            before[j].append(i)
    loops: dict[int, set[int]] = {}
    for last, first in _back_edges(after):
        loop = loops.setdefault(first, {first})
        todo = [last]
        while todo:
            i = todo.pop()
            if i not in loop:
                loop.add(i)
                todo += before[i]
    return [frozenset(loop) for loop in loops.values()]


def _back_edges(after: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Edges to an instruction on the current path, in a depth-first walk from the first instruction."""
    if not after:
        return []
    edges = []
    open_, seen = {0}, {0}
    path = [(0, iter(after[0]))]
    while path:
        i, steps = path[-1]
        for j in steps:
            if j in open_:
                edges.append((i, j))
            elif j not in seen:
                seen.add(j)
                open_.add(j)
                path.append((j, iter(after[j])))
                break
        else:
            open_.discard(i)
            path.pop()
    return edges
