"""`ernie-m convert SRC DST`: any checkpoint that can be read as a safetensors directory for transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..checkpoint.conversion import convert
from ..checkpoint.stored_tensor import FLOATS
from .command import add_command

DESCRIPTION = "Write a checkpoint, Paddle's or a pytorch_model.bin, as a safetensors directory that transformers loads."
EPILOG = """\
DST must not exist, or be empty. It gets config.json, model.safetensors and the tokenizer's files, or, if anything goes
wrong, nothing. Weights are kept to the bit, but for the dtype: half precision becomes float32 unless --dtype says
otherwise. A pytorch_model.bin is read with torch, which has to be installed.

examples:
  ernie-m convert PADDLE_DIR NEW_DIR
  ernie-m convert PADDLE_DIR SMALL_DIR --dtype bfloat16"""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = add_command(commands, "convert", "a checkpoint to safetensors", DESCRIPTION, EPILOG, run)
    parser.add_argument("source", metavar="SRC", help="a checkpoint directory, Hugging Face's or Paddle's")
    parser.add_argument("destination", metavar="DST", help="the directory to make")
    parser.add_argument("--dtype", choices=FLOATS, help="the weights' dtype (default: see above)")


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    convert(arguments.source, arguments.destination, arguments.dtype)
    for path in sorted(Path(arguments.destination).iterdir()):
        print(f"{path} ({path.stat().st_size:,} bytes)")
    return 0
