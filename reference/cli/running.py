"""What the commands that run a task share: where it computes, and how results are shown.

Results are JSON lines, or on a terminal what people read: a table, or text with marks.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..tasks import BACKENDS
from ..tasks.backends import limited_threads
from .input import Text
from .numbers import positive
from .output import print_json, said_warnings
from .table import table

JSON, TEXT = FORMATS = ("json", "text")
# Shown by --help of each of these commands.
OUTPUT = """\
output:
  JSON lines, one for each text, in order; on a terminal, what people read (--format chooses). Positions are characters
  (code points), the end exclusive."""


def add_running(parser: ArgumentParser) -> None:
    """Declare --backend, --device, --threads and --format."""
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="numpy", help="numpy, or torch, which is faster (default: %(default)s)")
    add("--device", metavar="NAME", help="where torch computes, such as cuda (default: cpu)")
    add("--threads", metavar="N", type=positive, help="compute on N threads (default: what the backend chooses)")
    add("--format", choices=FORMATS, help="of the output (default: text on a terminal, else json)")


def on_terminal(what: str) -> Callable[[int, int], None]:
    """A `progress` for tasks: how much is done, on standard error if it is a terminal."""

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" if done == of else f"\r{done:,} of {of:,} {what}")
            sys.stderr.flush()

    return progress


@contextmanager
def running(arguments: Namespace) -> Iterator[None]:
    """A context with the threads that the arguments ask for, in which warnings are notes."""
    with limited_threads(arguments.backend, arguments.threads), said_warnings():
        yield


def as_text(arguments: Namespace) -> bool:
    """Whether people read the output."""
    chosen: str | None = arguments.format
    return sys.stdout.isatty() if chosen is None else chosen == TEXT


def show(arguments: Namespace, found: Any, lines: Iterable[str]) -> None:
    """Print a result as JSON, or as `lines` for people."""
    if as_text(arguments):
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    else:
        print_json(found)
    sys.stdout.flush()


def task_options(arguments: Namespace) -> dict[str, Any]:
    """For the `from_pretrained` of a task."""
    progress = on_terminal("rows of tokens read")
    return {"backend": arguments.backend, "device": arguments.device, "progress": progress}


def marked(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """The text with its spans, in order and none inside another, as [span](label)."""
    parts, at = [], 0
    for start, end, label in spans:
        parts += [text[at:start], f"[{text[start:end]}]({label})"]
        at = end
    return "".join([*parts, text[at:]])


def lines_of(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "  ") -> list[str]:
    """An indented table."""
    return [indent + line for line in table(rows, right)] if rows else []


def contents(items: Sequence[Text]) -> list[str]:
    """The texts without their origins."""
    return [item.text for item in items]
