"""`ernie-m align`: which words of a sentence and of its translation mean the same.

`tasks.align` does the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from ..tasks import POOLINGS, align
from ..tasks.align import METHODS, AlignedPair
from .command import add_command
from .input import Text, texts
from .model import add_model, add_vectors
from .numbers import file_name
from .running import OUTPUT, add_running, encoding, lines_of, show

DESCRIPTION = "Align the words of sentences with those of their translations, by the vectors of their tokens."
EPILOG = f"""\
input:
  SENTENCE TRANSLATION, or lines of FILE or of standard input: a sentence, a tab, and its translation. In scripts
  without spaces, pieces of the tokenizer take the place of words.

methods (SimAlign, Jalili Sabet et al., 2020):
  itermax  more pairs, among them several for one word; the default
  argmax   only words that are each other's best

{OUTPUT}
  {{"index": 0, "sentence": "...", "translation": "...",
   "pairs": [{{"source": [0, 3], "target": [0, 5], "score": 0.7}}, ...]}}

examples:
  ernie-m align --language en --translation-language de "Close the file." "Schließen Sie die Datei."
  ernie-m align --model DIR --file pairs.tsv > aligned.jsonl
"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "align", "align the words of translations", DESCRIPTION, EPILOG, run)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a sentence and its translation")
    file = "read pairs from a UTF-8 file, one per line: sentence, tab, translation"
    parser.add_argument("--file", metavar="FILE", type=file_name, help=file)
    add_model(parser)
    # The pooler's output has no tokens.
    add_vectors(parser, poolings=[pooling for pooling in POOLINGS if pooling != "pooler"])
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="see below (default: %(default)s)")
    parser.add_argument("--language", metavar="CODE", help="the sentences' language, whose mean is subtracted")
    subtracted = "the translations' language, whose mean is subtracted"
    parser.add_argument("--translation-language", metavar="CODE", help=subtracted)
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Align each pair."""
    languages = {"language": arguments.language, "translation_language": arguments.translation_language}
    if (arguments.language is None) != (arguments.translation_language is None):
        raise ValueError("--language and --translation-language: expected both or neither, got one")
    if len(arguments.texts) not in (0, 2):
        count = len(arguments.texts)
        raise ValueError(f"TEXT: expected a sentence and its translation, got {count} text{'s' * (count > 1)}")
    found = texts(arguments)
    with encoding(arguments) as encoder:
        for count, (sentence, translation) in enumerate(pairs(found, bool(arguments.texts))):
            aligned = align(sentence, translation, encoder, arguments.method, **languages)
            result = {
                "index": count,
                "sentence": sentence,
                "translation": translation,
                "pairs": [one._asdict() for one in aligned],
            }
            show(arguments, result, shown(sentence, translation, aligned))
    return 0


def pairs(found: Iterable[Text], from_arguments: bool) -> Iterator[tuple[str, str]]:
    """Sentences and translations: two arguments, or lines with a tab."""
    if from_arguments:
        first, second = found
        yield first.text, second.text
        return
    for item in found:
        cells = item.text.split("\t")
        if len(cells) != 2:
            got = "no tab" if len(cells) == 1 else f"{len(cells)} columns"
            raise ValueError(f"{item.origin}: expected a sentence, a tab and a translation, got {got}")
        yield cells[0], cells[1]


def shown(sentence: str, translation: str, aligned: list[AlignedPair]) -> list[str]:
    """For people."""
    rows = [(sentence[slice(*one.source)], translation[slice(*one.target)], f"{one.score:.3f}") for one in aligned]
    return [sentence, translation, *lines_of(rows), ""]
