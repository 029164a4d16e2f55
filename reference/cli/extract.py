"""`ernie-m extract`: what a schema asks for, from texts. `tasks.Extractor` does the work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tasks import Extractor
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .numbers import probability
from .running import OUTPUT, add_running, contents, running, show, task_options

WINDOW = 256

DESCRIPTION = "Extract entities, relations and classes from texts with a UIE model. Long texts are read in windows."
EPILOG = f"""\
schema:
  --schema NAME, once for each name, or JSON: names, lists of them, and objects with a name and the schema below it:
    --schema '{{"person": ["birthplace", {{"company": "place"}}]}}'    below each person, more is asked
    --schema 'attitude [good, bad]'                                 a classification
  @FILE reads the JSON from a file. Below a result, "en" asks "birthplace of Ada", "zh" asks "马云的出生地".

{OUTPUT}
  {{"index": 0, "text": "...", "found": {{"person": [{{"text": "Ada", "start": 0, "end": 3, "probability": 0.9,
   "relations": {{...}}}}]}}}}

examples:
  ernie-m extract --model DIR --schema person --schema place --schema-lang en "Ada lived in London."
  ernie-m extract --model DIR --schema @schema.json --file news.txt > found.jsonl"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "extract", "extract what a schema asks for", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser, head=True)
    add_option = parser.add_argument
    add_option("--schema", metavar="SCHEMA", action="append", required=True, help="what to extract; see below")
    add_option("--schema-lang", choices=("zh", "en"), default="zh", help="see below (default: %(default)s)")
    add_option(
        "--threshold",
        metavar="P",
        type=probability,
        default=0.5,
        help="probability that a start and an end must exceed (default: %(default)s)",
    )
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Extract from all texts."""
    schema = [read(one) for one in arguments.schema]
    found = texts(arguments)
    count = 0
    with running(arguments):
        extractor = Extractor.from_pretrained(model_directory(arguments), **task_options(arguments))
        for window in windows(found, WINDOW):
            given = contents(window)
            results = extractor.extract(given, flat(schema), arguments.threshold, arguments.schema_lang)
            for text, result in zip(given, results, strict=True):
                show(arguments, {"index": count, "text": text, "found": result}, [text, *lines(result)])
                count += 1
    return 0


def read(schema: str) -> Any:
    """A schema from the command line. Raises ValueError for JSON that is none."""
    name, text = "--schema", schema
    if schema.startswith("@"):
        name, text = schema[1:], Path(schema[1:]).read_text("utf-8")
    elif not schema.startswith(("{", "[", '"')):
        return schema
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: expected a name or JSON, got {text!r:.80}: {error}") from None


def flat(schemas: list[Any]) -> list[Any]:
    """All schemas as one list."""
    return [item for schema in schemas for item in (schema if isinstance(schema, list) else [schema])]


def lines(result: Mapping[str, Any], indent: str = "  ") -> list[str]:
    """For people: each name and what was found, relations below."""
    found = []
    for name, items in result.items():
        for item in items:
            place = f" {item['start']}:{item['end']}" if "start" in item else ""
            found.append(f"{indent}{name}: {item['text']}{place} ({item['probability']:.3f})")
            found += lines(item.get("relations", {}), indent + "  ")
    return found
