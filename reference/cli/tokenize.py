"""`ernie-m tokenize`: text to tokens, ids and offsets, one JSON object on one line for each text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ernie_m.tokenizer import ErnieMTokenizer

from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .output import print_json

WINDOW = 256
LONE_MARKERS = ("huggingface", "paddle")

DESCRIPTION = "Show what the tokenizer makes of texts: one JSON object on one line for each text, in order."
EPILOG = """\
each line has
  index           number of the text, from 0
  tokens, ids     the tokens and their ids, special tokens included; nothing is cut
  offsets         [start, end] of each token in its text, in characters (code points); [0, 0] for special tokens
  token_type_ids  with --pair only: which of the two texts a token belongs to

examples:
  ernie-m tokenize "Good morning!"
  ernie-m tokenize --model DIR --file sentences.txt > tokens.jsonl
  ernie-m tokenize --pair "It is on the sofa." "Where is the cat?" """.rstrip()


def add(commands: Any) -> None:
    """The command's arguments."""
    parser = add_command(commands, "tokenize", "texts to tokens, ids and offsets", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--pair", metavar="TEXT2", help="pair each text with this one, which comes second")
    parser.add_argument("--lower-case", action="store_true", help="lower-case the texts first")
    parser.add_argument(
        "--lone-marker",
        choices=LONE_MARKERS,
        help="how a word mark that stands alone is treated (default: the model's)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one object for each text."""
    found = texts(arguments)
    options: dict[str, Any] = {"do_lower_case": True} if arguments.lower_case else {}
    if arguments.lone_marker is not None:
        options["lone_marker"] = arguments.lone_marker
    tokenizer = ErnieMTokenizer.from_pretrained(model_directory(arguments), **options)
    count = 0
    for window in windows(found, WINDOW):
        first = [item.text for item in window]
        second = None if arguments.pair is None else [arguments.pair] * len(window)
        batch = tokenizer(first, second, return_offsets_mapping=True, return_token_type_ids=second is not None)
        for i, ids in enumerate(batch["input_ids"]):
            line = {
                "index": count,
                "tokens": tokenizer.convert_ids_to_tokens(ids),
                "ids": ids,
                "offsets": batch["offset_mapping"][i],
            }
            if second is not None:
                line["token_type_ids"] = batch["token_type_ids"][i]
            print_json(line)
            count += 1
        sys.stdout.flush()
    return 0
