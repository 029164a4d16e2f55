"""Rerun a command in a new process with Triton's interpreter on.

Triton reads TRITON_INTERPRET when it is imported, so the current process cannot switch the interpreter on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import torch

from ernie_m.reference.cli.command import DIFFERENCE, INTERRUPTED

from ..runtime import dispatch
from ..runtime.optional_triton import HAS_TRITON


def run_interpreted(argv: Sequence[str]) -> int | None:
    """Run the command in a process with Triton's interpreter and return its exit code.

    Returns None if that is not needed: with a GPU, with the interpreter already on, or without Triton.
    """
    if dispatch.INTERPRETED or torch.cuda.is_available() or not HAS_TRITON:
        return None
    sys.stdout.flush()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.Popen([sys.executable, "-m", "ernie_m.kernels", *argv], env=environment)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        # Ctrl-C in a terminal also reaches the child, which reports it.
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
        return INTERRUPTED
    if status < 0:
        name = signal.Signals(-status).name
        print(f"ernie_m.kernels: {name} ended the process: did a kernel access memory out of range?", file=sys.stderr)
        return DIFFERENCE
    return status
