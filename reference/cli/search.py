"""`ernie-m search`: the nearest texts of a corpus for each query, by the cosine of their vectors.

`tasks.search` does the work.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array
from ..tasks import Encoder, search
from .command import add_command
from .input import Text, add_arguments, lines_of_file, texts, windows
from .model import add_model, model_directory
from .numbers import positive
from .output import say
from .running import OUTPUT, add_running, contents, lines_of, running, show

# Queries that are searched for at a time.
WINDOW = 256

DESCRIPTION = "Find for each query the texts of a corpus whose vectors are nearest to its own, by cosine."
EPILOG = f"""\
corpus:
  NAME.npy   vectors that `ernie-m encode` wrote with the same model and options; read block by block, so it may be
             larger than memory. --corpus-texts names the file that they were made of, to show its lines
  other      a UTF-8 file with one text per line, which is encoded first

languages:
  The mean vector of a language says which language it is, not what is said. With --language and --corpus-language it is
  subtracted, where the checkpoint has it: then texts in other languages are found by what they say.

{OUTPUT}
  {{"index": 0, "query": "...", "hits": [{{"index": 17, "score": 0.83, "text": "..."}}, ...]}}

examples:
  ernie-m search --corpus help.txt "Where are the print settings?"
  ernie-m search --corpus hilfe.txt --language en --corpus-language de "Where are the print settings?"
  ernie-m encode --file help.txt --output help.npy && ernie-m search --corpus help.npy --corpus-texts help.txt "Print"
"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "search", "find the nearest texts of a corpus", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser)
    parser.add_argument("--corpus", metavar="FILE", required=True, help="texts, or vectors in NAME.npy")
    parser.add_argument("--corpus-texts", metavar="FILE", help="the texts of NAME.npy")
    parser.add_argument("--top-k", metavar="N", type=positive, default=5, help="hits per query (default: %(default)s)")
    parser.add_argument("--language", metavar="CODE", help="the queries' language")
    parser.add_argument("--corpus-language", metavar="CODE", help="the corpus's language")
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search for each query."""
    languages = {"language": arguments.language, "corpus_language": arguments.corpus_language}
    if (arguments.language is None) != (arguments.corpus_language is None):
        raise ValueError("--language and --corpus-language: expected both or neither, got one")
    queries = texts(arguments)
    with running(arguments):
        # Read first: a wrong name must fail before any work is done.
        kept, known = read_corpus(arguments)
        center = arguments.language is not None
        options = {"backend": arguments.backend, "device": arguments.device, "center": center, "normalize": True}
        encoder = Encoder.from_pretrained(model_directory(arguments), **options)
        if kept is None:
            assert known is not None
            say(f"encoding {len(known):,} texts of the corpus")
            kept = encoder.vectors(known, language=languages["corpus_language"])
        elif center:
            say("the vectors in the corpus are taken as they are: they should have been made with --center")
        count = 0
        for window in windows(queries, WINDOW):
            asked = encoder.vectors(contents(window), [item.origin for item in window], languages["language"])
            found = search(asked, kept, arguments.top_k)
            for item, indices, scores in zip(window, found.indices, found.scores, strict=True):
                hits = [hit(int(i), float(score), known) for i, score in zip(indices, scores, strict=True)]
                show(arguments, {"index": count, "query": item.text, "hits": hits}, shown(item, hits))
                count += 1
    return 0


def read_corpus(arguments: argparse.Namespace) -> tuple[Array | None, list[str] | None]:
    """The vectors of the corpus, if it is a file of such, and its texts, if they are known."""
    path = Path(arguments.corpus)
    if path.suffix != ".npy":
        if arguments.corpus_texts is not None:
            raise ValueError(f"--corpus-texts: expected vectors in NAME.npy as --corpus, got {arguments.corpus}")
        found = contents(list(lines_of_file(arguments.corpus)))
        if not found:
            raise ValueError(f"--corpus: expected texts in {arguments.corpus}, got none")
        return None, found
    try:
        vectors: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"--corpus: expected an array of vectors in {arguments.corpus}: {error}") from None
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"--corpus: expected vectors, (N, E), in {arguments.corpus}, got shape {vectors.shape}")
    if arguments.corpus_texts is None:
        return vectors, None
    known = contents(list(islice(lines_of_file(arguments.corpus_texts), len(vectors) + 1)))
    if len(known) != len(vectors):
        more = "more" if len(known) > len(vectors) else f"{len(known):,}"
        raise ValueError(f"--corpus-texts: expected {len(vectors):,} lines, as there are vectors, got {more}")
    return vectors, known


def hit(i: int, score: float, known: list[str] | None) -> dict[str, Any]:
    """A text of the corpus, and how near it is."""
    found = {"index": i, "score": round(score, 6)}
    return found if known is None else {**found, "text": known[i]}


def shown(query: Text, hits: list[dict[str, Any]]) -> list[str]:
    """For people."""
    rows = [(f"{found['score']:.3f}", str(found.get("text", f"vector {found['index']}"))) for found in hits]
    return [query.text, *lines_of(rows), ""]
