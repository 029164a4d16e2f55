"""`ernie-m encode`: one vector per text, in the order of the texts, for any number of texts.

Texts are read one window at a time, and within a window texts of similar length are batched together. While the model
computes one window, the next is read and tokenized. Memory depends on the window and batch sizes, not on the number of
texts.

`tasks.Encoder` does the work.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np

from ..tasks import BACKENDS, POLICIES, Encoder
from ..tasks.backends import limited_threads
from ..tasks.encoder import TOKENS, TokenRows
from .ahead import map_ahead
from .command import add_command
from .input import Text, add_arguments, texts, windows
from .model import add_model, add_vectors, model_directory
from .numbers import positive, thread_count, whole
from .output import Progress, said_warnings, say
from .vectors import vector_writer

OPTIONS = ("pooling", "long", "batch_size", "backend", "device", "layer", "center", "normalize")

DESCRIPTION = "Turn texts into float32 vectors, one per text, in order. An empty line also gets a vector."
EPILOG = """\
output:
  NAME.npy   an array of shape (texts, hidden size), for numpy.load
  NAME.npz   the same array under the name "vectors"
  -          JSON lines on standard output, {"index": 0, "vector": [...]}; the default

pooling:
  mean        the mean over all tokens, including [CLS] and [SEP] but not padding; the default
  cls         the hidden state of [CLS]
  pooler      the output of the model's pooler
  first-last  the mean over all tokens of the average of the first layer's output and the last one's

layers:
  mean takes the hidden states of the layer that the checkpoint records in its retrieval.json, if it does; the others,
  and mean without a record, those of the last. A vector for retrieval should also have the mean vector of its text's
  language subtracted (--center --language de), which retrieval.json records too.

texts longer than the model's maximum length:
  truncate     truncate them, and report how many there were; the default
  error        stop at the first, and report its line and length
  window-mean  split them into evenly spaced windows of the maximum length, each with its own [CLS] and [SEP], which
               overlap by at least a quarter; the vector is the unweighted mean of the windows' vectors

backends compute the same vectors up to rounding:
  numpy  the reference; the default. On several threads only where threadpoolctl is installed
         (pip install 'ernie-m[threads]')
  torch  the model of ernie_m.kernels, which is faster (pip install 'ernie-m[kernels]')

several machines:
  --shard 3/16 encodes the third of 16 parts of FILE, which every machine must have. The parts, one after the other, are
  bit for bit what one run writes: each holds whole windows, and the indexes in JSON lines continue from one part to the
  next.

examples:
  ernie-m encode "The cat sleeps." "Die Katze schläft."
  ernie-m encode --model DIR --pooling mean --file sentences.txt --output vectors.npy
  ernie-m encode --model DIR --backend torch --threads 2 --file sentences.txt --output vectors.npy
  zcat corpus.gz | ernie-m encode --model DIR --long window-mean --output corpus.npz"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "encode", "turn texts into vectors", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    add_vectors(parser, "below")
    parser.add_argument("--center", action="store_true", help="subtract the recorded mean vector of the language")
    parser.add_argument("--language", metavar="CODE", help="the language of all texts, for --center")
    parser.add_argument("--normalize", action="store_true", help="scale each vector to length 1")
    parser.add_argument("--output", metavar="FILE", default="-", help="NAME.npy, NAME.npz, or - (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--long", choices=POLICIES, default="truncate", help="how to treat long texts; see below (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=positive,
        help=f"texts per model call (default: as many as have {TOKENS:,} tokens together)",
    )
    parser.add_argument(
        "--window",
        metavar="N",
        type=positive,
        default=1024,
        help="texts to read, and sort by length, at a time (default: 1024)",
    )
    parser.add_argument("--shard", metavar="I/N", type=shard, help="only the I-th of N parts of FILE; see below")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="see below (default: %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="where torch computes, such as cuda (default: cpu)")
    parser.add_argument(
        "--threads", metavar="N", type=thread_count, help="compute on N threads (default: what the backend chooses)"
    )


def shard(text: str) -> tuple[int, int]:
    """Parse I/N, for argparse."""
    first, _, second = text.partition("/")
    try:
        part, of = whole(first, least=1), whole(second, least=1)
    except argparse.ArgumentTypeError:
        part, of = 1, 0
    if part > of:
        raise argparse.ArgumentTypeError(f"expected a part and the number of parts, such as 3/16, got {text!r}")
    return part, of


def chosen_windows(arguments: argparse.Namespace) -> tuple[int, Iterator[list[Text]]]:
    """How many texts come before, and the windows of the part that is to be encoded."""
    if arguments.shard is None:
        return 0, windows(texts(arguments), arguments.window)
    if arguments.file in (None, "-"):
        raise ValueError("--shard: expected --file FILE, which is read twice, got none")
    if os.path.exists(arguments.file) and not os.path.isfile(arguments.file):
        raise ValueError(f"--shard: expected a regular file, which is read twice, got {arguments.file}")
    part, of = arguments.shard
    sizes = [len(window) for window in windows(texts(arguments), arguments.window)]
    first, last = len(sizes) * (part - 1) // of, len(sizes) * part // of
    return sum(sizes[:first]), islice(windows(texts(arguments), arguments.window), first, last)


def run(arguments: argparse.Namespace) -> int:
    """Encode all texts. If reading, encoding or writing raises, no output file is left."""
    if arguments.center != (arguments.language is not None):
        raise ValueError("--center and --language: expected both or neither, got one")
    if arguments.overwrite and arguments.output == "-":
        raise ValueError("--overwrite: expected --output FILE too")
    before, found = chosen_windows(arguments)
    with (
        vector_writer(arguments.output, arguments.overwrite, before) as write,
        limited_threads(arguments.backend, arguments.threads),
        said_warnings(),
    ):
        encoder = Encoder.from_pretrained(
            model_directory(arguments), **{name: getattr(arguments, name) for name in OPTIONS}
        )
        # So that the output of a file without texts has the right width.
        write(np.empty((0, encoder.model.config.hidden_size), np.float32))
        progress = Progress("texts encoded", shown=arguments.output != "-")

        def tokenize(window: list[Text]) -> TokenRows:
            return encoder.token_rows([item.text for item in window], [item.origin for item in window])

        try:
            with closing(map_ahead(tokenize, found)) as tokenized:
                for rows in tokenized:
                    write(encoder.vectors_of_rows(rows, arguments.language))
                    progress.add(rows.count)
        finally:
            progress.clear()
    if encoder.truncated:
        longest = encoder.model.config.max_length
        say(f"truncated {encoder.truncated:,} of {progress.count:,} texts to the model's {longest} tokens")
    return 0
