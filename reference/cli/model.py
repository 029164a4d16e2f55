"""Which checkpoint a command runs on: the one that `--model` names, or the small one that ships with the package."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib.resources import files
from pathlib import Path

from ernie_m.tokenizer import ErnieMTokenizer

from .cli_output import say

LONE_MARKERS = ("huggingface", "paddle")


def add_model(parser: ArgumentParser) -> None:
    """--model."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="checkpoint directory, Hugging Face's or Paddle's (default: the demo's, untrained)",
    )


def demo_directory() -> Path:
    """The folder of the checkpoint that ships with the package."""
    return Path(str(files("ernie_m.reference") / "demo"))


def model_directory(arguments: Namespace) -> Path:
    """The directory that the arguments name; the demo's otherwise, which is said on stderr."""
    if arguments.model is not None:
        return Path(arguments.model)
    say("no --model: using the demo checkpoint, whose weights are random, not trained")
    return demo_directory()


def load_tokenizer(directory: Path, arguments: Namespace | None = None) -> ErnieMTokenizer:
    """The tokenizer in a checkpoint directory, with the arguments of `tokenize` if there are any."""
    options = {}
    if arguments is not None and arguments.lower_case:
        options["do_lower_case"] = True
    if arguments is not None and arguments.lone_marker is not None:
        options["lone_marker"] = arguments.lone_marker
    return ErnieMTokenizer.from_pretrained(directory, **options)
