"""The checkpoint that a command runs on: the one that `--model` names, or the demo checkpoint."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from .. import demo
from .output import say


def add_model(parser: ArgumentParser, head: bool = False) -> None:
    """Declare --model; `head`: it must have a head, which the demo's has not."""
    default = "with the head for this" if head else "(default: the small checkpoint in the package)"
    parser.add_argument(
        "--model",
        metavar="DIR",
        required=head,
        help=f"checkpoint directory in Hugging Face or Paddle format {default}",
    )


def model_directory(arguments: Namespace) -> Path:
    """The directory that the arguments name; by default the demo's, with a note on standard error."""
    if arguments.model is not None:
        return Path(arguments.model)
    say("no --model: using the small checkpoint in the package, which only knows help pages of software")
    return demo.directory()
