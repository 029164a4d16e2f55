"""`ernie-m convert SRC DST`: write any readable checkpoint as a safetensors directory for transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ernie_m.tokenizer.saving import MODEL, VOCABULARY

from ..checkpoint.conversion import convert
from ..checkpoint.stored_tensor import FLOATS
from .command import add_command
from .model import CHECKPOINT, checkpoint_directory
from .numbers import directory_name
from .output import say

# What every tokenizer needs.
TOKENIZER = (MODEL, VOCABULARY)

DESCRIPTION = (
    "Convert a checkpoint, such as Paddle's or a pytorch_model.bin, to a safetensors directory for transformers."
)
EPILOG = """\
DST must be new, or an empty directory. It receives config.json, model.safetensors, and, if SRC has them, the
tokenizer's files and retrieval.json; if anything goes wrong, nothing is left there. Weights are copied bit for bit,
except that half precision becomes float32 unless --dtype says otherwise, and get transformers' names, without prefixes
such as module. Reading a pytorch_model.bin requires torch, which you install yourself.

examples:
  ernie-m convert PADDLE_DIR NEW_DIR
  ernie-m convert PADDLE_DIR SMALL_DIR --dtype bfloat16"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "convert", "convert a checkpoint to safetensors", DESCRIPTION, EPILOG, run)
    parser.add_argument("source", metavar="SRC", type=directory_name, help=f"the checkpoint: a {CHECKPOINT}")
    parser.add_argument("destination", metavar="DST", type=directory_name, help="the directory to create")
    parser.add_argument("--dtype", choices=FLOATS, help="dtype of the written weights (default: see below)")


def run(arguments: argparse.Namespace) -> int:
    """Convert, then list the files written. If the tokenizer's files are not among them, a note says so."""
    source = checkpoint_directory(arguments.source)
    convert(source, arguments.destination, arguments.dtype)
    missing = [name for name in TOKENIZER if not (Path(arguments.destination) / name).is_file()]
    if missing:
        say(f"{arguments.destination}: has no tokenizer, as {source} lacks {' and '.join(missing)}")
    for path in sorted(Path(arguments.destination).iterdir()):
        print(f"{path} ({path.stat().st_size:,} bytes)")
    return 0
