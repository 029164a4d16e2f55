"""`ernie-m encode`: one text, one vector, in the order of the texts, however many there are.

Texts are read a window at a time; within a window, batches are made of texts of about the same length. Memory
depends on the sizes of window and batch, never on the number of texts.

The work is done by `tasks.Encoder`.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from ..tasks import POLICIES, POOLINGS, Encoder
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .output import Progress, say
from .vectors import vector_writer

DESCRIPTION = "Turn texts into vectors of float32: one text, one vector, in order; an empty line gives one too."
EPILOG = """\
output:
  NAME.npy   an array (texts, hidden size), for numpy.load
  NAME.npz   the same, under the name "vectors"
  -          JSON lines, {"index": 0, "vector": [...]}; the default

texts longer than the model:
  truncate     cut them, and say how many they were; the default
  error        stop, and say which line it is and how long
  window-mean  split them into windows of the model's length, evenly spaced, which overlap by a quarter or more, each
               with its own [CLS] and [SEP]; the vector is the mean of the windows' vectors, all weighted alike

mean pooling counts every token, [CLS] and [SEP] too, and no padding.

examples:
  ernie-m encode "The cat sleeps." "Die Katze schläft."
  ernie-m encode --model DIR --pooling mean --file sentences.txt --output vectors.npy
  zcat corpus.gz | ernie-m encode --model DIR --long window-mean --output corpus.npz"""


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = add_command(commands, "encode", "texts to vectors", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="what the vector is (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", default="-", help="NAME.npy, NAME.npz, or - (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--long", choices=POLICIES, default="truncate", help="texts longer than the model (see below)")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="texts in one call of the model (default: 32)"
    )
    parser.add_argument(
        "--window", metavar="N", type=positive, default=1024, help="texts read before they are sorted (default: 1024)"
    )


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Encode all texts. Raises what reading, the model or writing raises; then there is no output file."""
    found = texts(arguments)
    with vector_writer(arguments.output, arguments.overwrite) as write:
        encoder = Encoder.from_pretrained(
            model_directory(arguments), arguments.pooling, arguments.long, arguments.batch_size
        )
        # So that a file with no texts has the vectors' width too.
        write(np.empty((0, encoder.model.config.hidden_size), np.float32))
        progress = Progress("texts encoded", shown=arguments.output != "-")
        try:
            for window in windows(found, arguments.window):
                write(encoder.vectors([item.text for item in window], [item.origin for item in window]))
                progress.add(len(window))
        finally:
            progress.clear()
    if encoder.truncated:
        longest = encoder.model.config.max_length
        say(f"truncated {encoder.truncated:,} of {progress.count:,} texts to the model's {longest} tokens")
    return 0
