"""What the commands that run a task share: where it computes, and how results are shown.

Results are JSON lines, or on a terminal readable text: a table, or the text with marks.
"""

from __future__ import annotations

import re
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..tasks import BACKENDS, Encoder
from ..tasks.backends import limited_threads
from .input import Text
from .model import model_directory
from .numbers import thread_count
from .output import Progress, print_json, said_warnings, say
from .table import escaped, table

JSON, TEXT = FORMATS = ("json", "text")
# Shown by --help of each of these commands.
OUTPUT = """\
output:
  JSON lines, one for each text, in order; on a terminal, readable text (--format overrides this), with control
  characters escaped. Positions are characters (code points), the end exclusive. Scores have six significant digits."""
# How tasks call the text that an error or a warning is about.
PLACE = re.compile(r"\b(?:con)?texts\[(\d+)\]")


def add_running(parser: ArgumentParser) -> None:
    """Declare --backend, --device, --threads and --format."""
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="numpy", help="numpy, or torch, which is faster (default: %(default)s)")
    add("--device", metavar="NAME", help="where torch computes, such as cuda (default: cpu)")
    add("--threads", metavar="N", type=thread_count, help="compute on N threads (default: what the backend chooses)")
    add("--format", choices=FORMATS, help="output format (default: text on a terminal, else json)")


@contextmanager
def running(arguments: Namespace) -> Iterator[dict[str, Any]]:
    """A context with the threads that the arguments ask for, in which warnings are notes.

    It yields options for the `from_pretrained` of a task, among them a `progress`, which is erased at the end.
    """
    progress = Progress("rows of tokens read")
    with limited_threads(arguments.backend, arguments.threads), said_warnings():
        try:
            yield {"backend": arguments.backend, "device": arguments.device, "progress": progress.of}
        finally:
            progress.clear()


@contextmanager
def encoding(arguments: Namespace, normalize: bool = False) -> Iterator[Encoder]:
    """Like `running`, with the Encoder that the arguments ask for; how many texts it truncated is noted at the end."""
    names = ("pooling", "layer", "backend", "device")
    options = {name: getattr(arguments, name) for name in names}
    with running(arguments):
        center = arguments.language is not None
        encoder = Encoder.from_pretrained(model_directory(arguments), center=center, normalize=normalize, **options)
        yield encoder
        if encoder.truncated:
            texts = f"{encoder.truncated:,} text{'s' * (encoder.truncated > 1)}"
            say(f"truncated {texts} to the model's {encoder.model.config.max_length} tokens")


@contextmanager
def naming(window: Sequence[Text], **options: str) -> Iterator[None]:
    """In this context, errors and warnings call `texts[3]` by that text's origin.

    options: what to call other arguments, such as questions="--question" for an error about `questions[3]`.
    """

    def place(found: re.Match[str]) -> str:
        i = int(found[1])
        return window[i].origin if i < len(window) else found[0]

    def named(message: Warning | Exception | str) -> str:
        text = str(message)
        for name, option in options.items():
            text = re.sub(rf"^{name}\[\d+\]", option, text)
        return PLACE.sub(place, text)

    shown = warnings.showwarning
    warnings.showwarning = lambda message, *rest, **more: shown(named(message), *rest, **more)
    try:
        yield
    except (TypeError, ValueError) as error:
        if named(error) == str(error):
            raise
        raise type(error)(named(error)) from None
    finally:
        warnings.showwarning = shown


def as_text(arguments: Namespace) -> bool:
    """Whether people read the output."""
    chosen: str | None = arguments.format
    return sys.stdout.isatty() if chosen is None else chosen == TEXT


def show(arguments: Namespace, found: Any, lines: Iterable[str]) -> None:
    """Print a result as JSON, or as `lines` for people."""
    if as_text(arguments):
        sys.stdout.write("".join(f"{escaped(line)}\n" for line in lines))
    else:
        print_json(rounded(found))
    sys.stdout.flush()


def rounded(found: Any) -> Any:
    """A result with its numbers to six significant digits, about what float32 computes."""
    if isinstance(found, float):
        return float(f"{found:.6g}")
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    return [rounded(value) for value in found] if isinstance(found, (list, tuple)) else found


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
