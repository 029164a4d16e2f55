"""`ernie-m encode`: one text, one vector, in the order of the texts, however many there are.

Texts are read a window at a time; within a window, batches are made of texts of about the same length. Memory
depends on the sizes of window and batch, never on the number of texts.

    cls      hidden state of [CLS]
    mean     mean of the hidden states of all tokens, [CLS] and [SEP] included
    pooler   the pooler's output, tanh(dense(cls))
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer

from .checkpoint import open_checkpoint
from .checkpoint_names import file_name
from .cli_input import Text, add_arguments, texts, windows
from .cli_long import POLICIES, TRUNCATE, WINDOW_MEAN, parts
from .cli_model import add_model, load_tokenizer, model_directory
from .cli_output import Progress, say
from .cli_vectors import vector_writer
from .model import ErnieMModel
from .parameters import Array

POOLINGS = ("cls", "mean", "pooler")

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
    parser = commands.add_parser(
        "encode",
        help="texts to vectors",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--pooling", choices=POOLINGS, default="mean", help="what the vector is (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", default="-", help="NAME.npy, NAME.npz, or - (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument("--long", choices=POLICIES, default=TRUNCATE, help="texts longer than the model (see below)")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive, default=32, help="texts in one call of the model (default: 32)"
    )
    parser.add_argument(
        "--window", metavar="N", type=positive, default=1024, help="texts read before they are sorted (default: 1024)"
    )
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Encode all texts. Raises what reading, the model or writing raises; then there is no output file."""
    found = texts(arguments)
    with vector_writer(arguments.output, arguments.overwrite) as write:
        encoder = Encoder.load(model_directory(arguments), arguments)
        # So that a file with no texts has the vectors' width too.
        write(np.empty((0, encoder.model.config.hidden_size), np.float32))
        progress = Progress("texts encoded", shown=arguments.output != "-")
        try:
            for window in windows(found, arguments.window):
                write(encoder.vectors(window))
                progress.add(len(window))
        finally:
            progress.clear()
    if encoder.cut:
        longest = encoder.model.config.max_length
        say(f"texts longer than the model's {longest} tokens, which were cut: {encoder.cut:,} of {progress.count:,}")
    return 0


def check_pooler(directory: Path) -> None:
    """Raise ValueError if a checkpoint has no pooler, in place of which `from_pretrained` makes a random one."""
    checkpoint = open_checkpoint(directory)
    if file_name("pooler.weight", checkpoint.format, checkpoint.prefix) not in checkpoint.tensors:
        raise ValueError(f"--pooling pooler: {directory} holds no pooler; expected cls or mean")


class Encoder:
    """A model and its tokenizer, with what the user chose; `cut` counts the texts that were cut so far."""

    def __init__(
        self, model: ErnieMModel, tokenizer: ErnieMTokenizer, pooling: str, policy: str, batch_size: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.policy, self.batch_size = pooling, policy, batch_size
        self.cut = 0

    @classmethod
    def load(cls, directory: Path, arguments: argparse.Namespace) -> Encoder:
        """From a checkpoint directory. Raises what `from_pretrained` of the two raises."""
        tokenizer = load_tokenizer(directory)
        if arguments.pooling == "pooler":
            check_pooler(directory)
        model = ErnieMModel.from_pretrained(directory, dtype=np.float32)
        if model.config.max_length < 3:
            # [CLS], [SEP], and something between them.
            raise ValueError(f"{directory}: expected a model for at least 3 tokens, got {model.config.max_length}")
        return cls(model, tokenizer, arguments.pooling, arguments.long, arguments.batch_size)

    def vectors(self, window: Sequence[Text]) -> Array:  # n texts -> (n, E)
        """One vector for each text, in order.

        Raises ValueError that names the text if it is too long and that is an error, or if it is no valid text.
        """
        longest = self.model.config.max_length - 2
        owners: list[int] = []
        pieces: list[list[int]] = []
        for i, ids in enumerate(self._token_ids(window)):
            try:
                found = parts(ids, longest, self.policy)
            except ValueError as error:
                raise ValueError(f"{window[i].origin}: {error}") from None
            self.cut += self.policy == TRUNCATE and len(ids) > longest
            owners += [i] * len(found)
            pieces += [self.tokenizer.build_inputs_with_special_tokens(list(piece)) for piece in found]

        sums = np.zeros((len(window), self.model.config.hidden_size), np.float32)
        order = sorted(range(len(pieces)), key=lambda j: len(pieces[j]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            # Not `sums[...] += ...`, which counts an owner that comes twice only once.
            np.add.at(sums, [owners[j] for j in chosen], self._pooled([pieces[j] for j in chosen]))
        if self.policy == WINDOW_MEAN:
            sums /= np.bincount(owners, minlength=len(window)).astype(np.float32)[:, None]
        return sums

    def _token_ids(self, window: Sequence[Text]) -> list[list[int]]:
        batch = self.tokenizer([item.text for item in window], add_special_tokens=False, return_attention_mask=False)
        return list(batch["input_ids"])

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Array:  # B rows of ids -> (B, E)
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        input_ids = np.full(mask.shape, self.model.config.pad_token_id, np.int64)
        input_ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in rows])
        out = self.model(input_ids, attention_mask=mask)
        if self.pooling == "pooler":
            assert out.pooler_output is not None
            return out.pooler_output
        if self.pooling == "cls":
            return out.last_hidden_state[:, 0]
        # Padding is 0 in every hidden state.
        return out.last_hidden_state.sum(axis=1) / lengths[:, None].astype(np.float32)
