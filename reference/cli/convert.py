"""`ernie-m convert SRC DST`: any checkpoint that can be read as a safetensors directory for transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .convert import convert
from .stored_tensor import FLOATS

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
    parser = commands.add_parser(
        "convert",
        help="a checkpoint to safetensors",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint directory, Hugging Face's or Paddle's")
    parser.add_argument("destination", metavar="DST", help="the directory to make")
    parser.add_argument("--dtype", choices=FLOATS, help="the weights' dtype (default: see above)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    convert(arguments.source, arguments.destination, arguments.dtype)
    for path in sorted(Path(arguments.destination).iterdir()):
        print(f"{path} ({path.stat().st_size:,} bytes)")
    return 0
