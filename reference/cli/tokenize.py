"""`ernie-m tokenize`: text to tokens, ids and offsets, as one JSON object per text, one per line."""

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

DESCRIPTION = "Show how the tokenizer splits texts: one JSON object per text, one per line, in order."
EPILOG = """\
fields of each line:
  index           the number of the text, from 0
  tokens, ids     the tokens and their ids, including [CLS] and [SEP]; texts are never truncated
  offsets         [start, end] of each token in its text, in characters (code points); [0, 0] for [CLS] and [SEP]
  token_type_ids  only with --pair: which of the two texts each token belongs to

examples:
  ernie-m tokenize "Good morning!"
  ernie-m tokenize --model DIR --file sentences.txt > tokens.jsonl
  ernie-m tokenize --pair "It is on the sofa." "Where is the cat?" """.rstrip()


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "tokenize", "turn texts into tokens, ids and offsets", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--pair", metavar="TEXT2", help="pair each text with TEXT2, which comes second")
    parser.add_argument("--lower-case", action="store_true", help="lower-case the texts first")
    parser.add_argument(
        "--lone-marker",
        choices=LONE_MARKERS,
        help="whose rule to follow for a lone word marker, ▁ (default: the checkpoint's)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print one JSON object per text."""
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
