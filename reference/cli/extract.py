"""`ernie-m extract`: what a schema asks for, from texts. `tasks.Extractor` does the work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from ernie_m.tokenizer.files import read_regular, unique

from ..tasks import Extractor
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .numbers import probability
from .running import OUTPUT, add_running, contents, naming, running, show

WINDOW = 256
# JSON that is no schema, and would be taken for a name.
NO_NAMES = ("null", "true", "false")

DESCRIPTION = "Extract entities, relations and classes from texts with a UIE model. Long texts are read in windows."
EPILOG = f"""\
schema:
  --schema NAME, once for each name, or JSON: names, lists of them, and objects with a name and the schema below it:
    --schema '{{"person": ["birthplace", {{"company": "place"}}]}}'    asks for more about each person
    --schema 'attitude [good, bad]'                                 a classification
  @FILE reads the JSON from a file. Below a result, "en" asks "birthplace of Ada", "zh" asks "马云的出生地".

threshold:
  A result reaches from a start to the next end. A lower threshold admits more of both, so it may find more, but it may
  also cut a good result into several poor ones.

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
        help="probability that a start and an end must exceed; see below (default: %(default)s)",
    )
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Extract from all texts."""
    schema = [read(one) for one in arguments.schema]
    found = texts(arguments)
    count = 0
    with running(arguments) as options:
        extractor = Extractor.from_pretrained(model_directory(arguments), **options)
        for window in windows(found, WINDOW):
            given = contents(window)
            with naming(window):
                results = extractor.extract(given, flat(schema), arguments.threshold, arguments.schema_lang)
            for text, result in zip(given, results, strict=True):
                show(arguments, {"index": count, "text": text, "found": result}, [text, *lines(result)])
                count += 1
    return 0


def read(schema: str) -> Any:
    """A schema from the command line. Raises ValueError for JSON that is none, or a file that is no UTF-8."""
    name, text = "--schema", schema
    if schema.startswith("@"):
        name = schema[1:]
        if not name:
            raise ValueError("--schema: expected the name of a file after @, got '@'")
        try:
            text = read_regular(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: expected JSON in UTF-8: {error}") from None
    elif schema in NO_NAMES:
        raise ValueError(f"--schema: expected a name or a schema, got JSON's {schema}; as a name, write '\"{schema}\"'")
    elif not schema.lstrip().startswith(("{", "[", '"')):
        return schema
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
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
