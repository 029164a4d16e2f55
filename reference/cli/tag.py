"""`ernie-m tag`: entities in texts, by a head that labels tokens. `tasks.Tagger` does the work."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..tasks import SCHEMES, Tagger
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .running import OUTPUT, add_running, contents, marked, naming, running, show

WINDOW = 256

DESCRIPTION = "Find the entities that a head for token classification labels. Long texts are read in windows."
EPILOG = f"""\
schemes of labels, such as B-name, I-name, O:
  BIO    B begins an entity, I continues it; the default
  BIOES  also E, the last token of an entity, and S, an entity of one token
  IO     adjacent tokens of the same kind form one entity

{OUTPUT}
  {{"index": 0, "text": "...", "entities": [{{"label": "name", "start": 0, "end": 3, "text": "Ada", "score": 0.98}}]}}

examples:
  ernie-m tag --model DIR "Choose File - Print."
  ernie-m tag --model DIR --backend torch --file sentences.txt > entities.jsonl"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "tag", "find entities in texts", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser, head=True)
    parser.add_argument("--scheme", choices=SCHEMES, default="BIO", help="see below (default: %(default)s)")
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Tag all texts."""
    found = texts(arguments)
    count = 0
    with running(arguments) as options:
        tagger = Tagger.from_pretrained(model_directory(arguments), **options)
        for window in windows(found, WINDOW):
            with naming(window):
                results = tagger.tag(contents(window), arguments.scheme)
            for item, entities in zip(window, results, strict=True):
                result = {"index": count, "text": item.text, "entities": [asdict(entity) for entity in entities]}
                show(arguments, result, [marked(item.text, [(e.start, e.end, e.label) for e in entities])])
                count += 1
    return 0
