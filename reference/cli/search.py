"""`ernie-m search`: the nearest texts of a corpus for each query, by the cosine of their vectors.

`tasks.search` does the work.
"""

from __future__ import annotations

import argparse
import os
import stat
import zipfile
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array
from ..tasks import Encoder, search
from .command import add_command
from .input import Text, add_arguments, lines_of_file, texts, windows
from .model import add_model, add_vectors
from .numbers import file_name, positive
from .output import Progress, say
from .running import OUTPUT, add_running, contents, encoding, lines_of, show
from .vectors import MEMBER, SUFFIXES

FLOATS = ("float16", "float32", "float64")
# Queries that are searched for, and texts of the corpus that are encoded, at a time.
WINDOW, CORPUS_WINDOW = 256, 1024

CORPUS = "the corpus: a text file, one text per line, or vectors in NAME.npy or NAME.npz"

DESCRIPTION = "Find for each query the texts of a corpus whose vectors are nearest to its own, by cosine."
EPILOG = f"""\
corpus:
  NAME.npy   vectors that `ernie-m encode` wrote with the same model, --pooling and --layer, and with --center if
             --language is given here; read block by block, so it may be larger than memory. --corpus-texts names the
             file they were made from, so that hits show its lines
  NAME.npz   the same, read into memory
  other      a UTF-8 file with one text per line, which is encoded first

languages:
  The mean vector of a language carries the language, not the meaning. With --language and --corpus-language it is
  subtracted, where the checkpoint has it; from vectors in a file, --center did so. Then texts in other languages are
  found by what they mean.

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
    add_vectors(parser)
    parser.add_argument("--corpus", metavar="FILE", type=file_name, required=True, help=CORPUS)
    parser.add_argument(
        "--corpus-texts", metavar="FILE", type=file_name, help="the texts of these vectors, one per line"
    )
    parser.add_argument("--top-k", metavar="N", type=positive, default=5, help="hits per query (default: %(default)s)")
    parser.add_argument("--language", metavar="CODE", help="the queries' language")
    parser.add_argument("--corpus-language", metavar="CODE", help="the language of the corpus, if that is text")
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search for each query."""
    if Path(arguments.corpus).suffix in SUFFIXES:
        if arguments.corpus_language is not None:
            expected = f"expected none with the vectors in {arguments.corpus}, as it would have no effect"
            raise ValueError(f"--corpus-language: {expected}, got {arguments.corpus_language}")
    elif (arguments.language is None) != (arguments.corpus_language is None):
        raise ValueError("--language and --corpus-language: expected both or neither, got one")
    refuse_one_pipe(arguments)
    queries = texts(arguments)
    # Read first: a wrong name must fail before any work is done.
    kept, known = read_corpus(arguments)
    with encoding(arguments, normalize=True) as encoder:
        if kept is None:
            kept = vectors_of(known, encoder, arguments.corpus_language)
        else:
            made = f"made with {options_of(encoder)}, as the queries are"
            say(f"the vectors in {arguments.corpus} should have been {made}")
        count = 0
        for window in windows(queries, WINDOW):
            asked = encoder.vectors(contents(window), [item.origin for item in window], arguments.language)
            found = search(asked, kept, arguments.top_k)
            for item, indices, scores in zip(window, found.indices, found.scores, strict=True):
                hits = [hit(int(i), float(score), known) for i, score in zip(indices, scores, strict=True)]
                show(arguments, {"index": count, "query": item.text, "hits": hits}, shown(item, hits))
                count += 1
    return 0


def vectors_of(known: list[str], encoder: Encoder, language: str | None) -> Array:  # n texts -> (n, E)
    """The vectors of the texts of the corpus."""
    say(f"encoding {len(known):,} texts of the corpus")
    progress = Progress(f"of {len(known):,} texts of the corpus encoded")
    found = []
    try:
        for start in range(0, len(known), CORPUS_WINDOW):
            window = known[start : start + CORPUS_WINDOW]
            found.append(encoder.vectors(window, language=language))
            progress.add(len(window))
    finally:
        progress.clear()
    return np.concatenate(found)


def options_of(encoder: Encoder) -> str:
    """The options of `ernie-m encode` that make vectors like this encoder's."""
    layer = f" --layer {encoder.layer}" if encoder.pooling in ("cls", "mean") else ""
    return f"--pooling {encoder.pooling}{layer} and with{'' if encoder.center else 'out'} --center"


def refuse_one_pipe(arguments: argparse.Namespace) -> None:
    """Raise ValueError if two of the inputs are the same pipe or terminal, of which the second would find nothing."""
    queries = ("--file", 0 if arguments.file in (None, "-") else arguments.file)
    inputs = [] if arguments.texts else [("TEXT or --file" if queries[1] == 0 else queries[0], queries[1])]
    inputs += [("--corpus", arguments.corpus), ("--corpus-texts", arguments.corpus_texts)]
    found: dict[tuple[int, int], str] = {}
    for name, file in inputs:
        try:
            status = os.stat(file)
        except (OSError, TypeError):  # none, or one that its reader reports
            continue
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            continue
        before = found.setdefault((status.st_dev, status.st_ino), name)
        if before != name:
            raise ValueError(f"{before}, {name}: expected two inputs, got {file} for both, which can be read only once")


def read_corpus(arguments: argparse.Namespace) -> tuple[Array | None, list[str]]:
    """The vectors of the corpus, if it is a file of such, and its texts, if they are known."""
    if Path(arguments.corpus).suffix not in SUFFIXES:
        if arguments.corpus_texts is not None:
            expected = "expected vectors in NAME.npy or NAME.npz as --corpus"
            raise ValueError(f"--corpus-texts: {expected}, got {arguments.corpus}")
        found = [item.text for item in lines_of_file(arguments.corpus)]
        if not found:
            raise ValueError(f"--corpus: expected texts in {arguments.corpus}, got none")
        return None, found
    vectors = read_vectors(arguments.corpus)
    if arguments.corpus_texts is None:
        return vectors, []
    known = [item.text for item in islice(lines_of_file(arguments.corpus_texts), len(vectors) + 1)]
    if len(known) != len(vectors):
        more = "more" if len(known) > len(vectors) else f"{len(known):,}"
        raise ValueError(f"--corpus-texts: expected {len(vectors):,} lines, as there are vectors, got {more}")
    return vectors, known


def read_vectors(path: str) -> Array:  # -> (N, E)
    """An array of vectors in a file that `ernie-m encode` wrote. Raises ValueError, naming the file, if it has none."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found as archive:
                found = archive[MEMBER]
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error.args[0] if error.args else error)
        # NumPy's words for a file of another kind, for one cut short, and for one of Python's objects.
        if "pickle" in reason or "mmap" in reason or "objects" in reason:
            reason = "it is damaged, or no .npy or .npz file of numbers"
        raise ValueError(f"--corpus: expected an array of vectors in {path}: {reason}") from None
    vectors: Array = found
    if vectors.dtype.name not in FLOATS:
        wanted = "float16, float32 or float64"
        raise ValueError(f"--corpus: expected vectors of {wanted} in {path}, got an array of {vectors.dtype}")
    if vectors.ndim != 2 or not len(vectors):
        raise ValueError(f"--corpus: expected vectors, (N, E), in {path}, got shape {vectors.shape}")
    return vectors


def hit(i: int, score: float, known: list[str]) -> dict[str, Any]:
    """A text of the corpus, and how near it is."""
    found = {"index": i, "score": score}
    return {**found, "text": known[i]} if known else found


def shown(query: Text, hits: list[dict[str, Any]]) -> list[str]:
    """For people."""
    texts = [found.get("text", f"vector {found['index']}") or "(empty line)" for found in hits]
    rows = [(f"{found['score']:.3f}", text) for found, text in zip(hits, texts, strict=True)]
    return [query.text, *lines_of(rows), ""]
