"""`ernie-m COMMAND ...`: the list of commands, and `main`.

Results go to standard output, as JSON lines where a program would read them; notes and errors go to standard error.
Each command is a file in this folder with `add`, which declares its arguments, and `run`, which does the work and
returns the exit code (see `command`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata

from . import align, answer, classify, convert, demo, encode, extract, inspect, search, tag, tokenize, trace
from .command import Parser, execute

COMMANDS = (demo, encode, search, align, extract, answer, tag, classify, tokenize, trace, inspect, convert)

DESCRIPTION = """\
ERNIE-M on the command line: turn text into vectors, search and align translations, extract, answer, tag and classify,
and look inside models and checkpoints."""
EPILOG = """\
examples:
  ernie-m demo
  ernie-m encode --model DIR --file sentences.txt --output vectors.npy
  ernie-m search --corpus sentences.txt "Where are the print settings?"
  ernie-m extract --model DIR --schema person --schema place "Ada lived in London."
  ernie-m tokenize "Good morning!" | head
  ernie-m trace "Good morning!"
  ernie-m inspect DIR
  ernie-m convert PADDLE_DIR NEW_DIR

Each command has its own --help. Put -- before a TEXT that begins with a dash.
exit codes: 0 success; 1 a comparison or an inspection found a difference; 2 error; 130 Ctrl-C; 143 SIGTERM;
141 closed pipe"""


def version() -> str:
    """The installed package's version."""
    try:
        return metadata.version("ernie-m")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def parser() -> argparse.ArgumentParser:
    """The parser for all commands."""
    root = Parser(
        prog=Parser.program,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="version", version=f"{Parser.program} {version()}")
    commands = root.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command.add(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default the one in `sys.argv`, and return its exit code."""
    return execute(Parser.program, parser, argv)
