"""The checkpoint that a command runs on: the one that `--model` names, or the demo checkpoint."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ernie_m.tokenizer import hub

from .. import demo
from ..tasks import POOLINGS
from .numbers import directory_name, whole
from .output import say

CHECKPOINT = "directory in Hugging Face or Paddle format, or OWNER/NAME[@REVISION] on the Hugging Face Hub"


def add_model(parser: ArgumentParser, head: bool = False) -> None:
    """Declare --model; `head`: it must have a head, which the demo's has not."""
    default = ", with a head for this task" if head else " (default: the small checkpoint in the package)"
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=directory_name,
        required=head,
        help=f"{CHECKPOINT}{default}",
    )


def add_vectors(parser: ArgumentParser, see: str = "ernie-m encode --help", poolings: Sequence[str] = POOLINGS) -> None:
    """Declare --pooling and --layer. `see`: where they are explained."""
    add = parser.add_argument
    add("--pooling", choices=poolings, default="mean", help=f"how vectors are made; see {see} (default: %(default)s)")
    add("--layer", metavar="N", type=whole, help=f"layer to take vectors from, 0 for the embeddings; see {see}")


def model_directory(arguments: Namespace) -> Path:
    """The directory that the arguments name; by default the demo's, with a note on standard error."""
    if arguments.model is not None:
        return checkpoint_directory(arguments.model)
    say("no --model: using the small checkpoint in the package, which only knows help pages of software")
    return demo.directory()


def checkpoint_directory(text: str) -> Path:
    """The directory that a command was given: a path, or a repository on the Hub, OWNER/NAME or OWNER/NAME@REVISION.

    Raises what `hub.directory` raises.
    """
    name, _, revision = text.partition("@")
    if revision and not os.path.lexists(text) and hub.is_repository(name):
        return Path(hub.directory(name, revision))
    return Path(hub.directory(text))
