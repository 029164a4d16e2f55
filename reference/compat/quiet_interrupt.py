"""Imported first, for its effect: Ctrl-C while a command imports its modules ends it without a traceback.

numpy takes tenths of a second to import, torch takes seconds, and what they do to a KeyboardInterrupt in the meantime
varies. So until a command starts (`cli.command.execute`), Ctrl-C ends the process at once. Only in this project's own
programs: where anybody else imports the package, nothing changes. Imports as little as it can.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
# Where Python looks for the module of -m, argv[0] is still "-m".
PROGRAMS = {
    "ernie_m.reference": "ernie-m",
    "ernie_m.reference.training.corpus": "corpus",
    "ernie_m.kernels": "ernie_m.kernels",
    "ernie_m.kernels.cli.interpreted": "ernie_m.kernels",
}
SCRIPTS = ("ernie-m", "ernie-m.exe", "ernie-m-script.py")


def own_program() -> str | None:
    """What this process calls itself if it is one of this project's commands; else None."""
    if sys.argv[:1] == ["-m"]:
        return next((name for module, name in PROGRAMS.items() if module in sys.orig_argv), None)
    return "ernie-m" if sys.argv and os.path.basename(sys.argv[0]) in SCRIPTS else None


NAME = own_program()


def stop(number: int, frame: object) -> None:
    """Handle the signal: end the process, without running anything that a half-imported module registered."""
    os.write(2, f"{NAME}: interrupted\n".encode())
    os._exit(INTERRUPTED)


def restore() -> None:
    """Make Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Ctrl-C stays ignored where it is, as in a shell's background jobs.
if NAME is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop)
