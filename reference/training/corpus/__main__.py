"""`python -m ernie_m.reference.training.corpus`, which `make corpus` runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...cli.command import Parser, execute
from ...cli.numbers import some_path, whole
from .recipe import DEFAULT, LANGUAGES, choose

PROGRAM = "corpus"
EPILOG = """\
Fetching needs apt-get (Debian's packages) and npm; without them, say --from DIR. The packages' licences are in NOTICE.
exit codes: 0 success; 2 error; 130 Ctrl-C; 143 SIGTERM; 141 closed pipe"""


class CorpusParser(Parser):
    """The project's parser under this program's name."""

    program = PROGRAM


def run(arguments: argparse.Namespace) -> int:
    """Build the corpus and print what is in it."""
    languages = choose(arguments.languages)
    try:
        from .build import build
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: install the extra `data` (pip install 'ernie-m[data]')") from error
    found = build(
        languages,
        arguments.folder,
        arguments.out,
        arguments.exact,
        lambda line: print(line, file=sys.stderr),
        arguments.vocabulary,
    )
    for split, count in found["segments"].items():
        texts = " ".join(f"{language} {row[split]}" for language, row in found["texts"].items())
        print(f"{split:6}{count:7} segments: {texts}")
    print(f"{arguments.out}: {arguments.out / 'report.md'} says more")
    return 0


def tokens(text: str) -> int:
    """Parse the size of a vocabulary, for argparse; sentencepiece allocates what it is told."""
    return whole(text, least=1, most=1_000_000)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    root = CorpusParser(
        prog="python -m ernie_m.reference.training.corpus",
        description="Make the training corpus: aligned sentences, also tokenised, a tokenizer and labelled data.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    root.add_argument("--from", dest="folder", type=some_path, metavar="DIR", help="take the packages that lie in DIR")
    root.add_argument("--exact", action="store_true", help="refuse packages that are not those of the recorded run")
    names = f"languages besides en, of: {' '.join(LANGUAGES)} (default: {' '.join(DEFAULT)})"
    root.add_argument("--languages", nargs="+", default=list(DEFAULT), metavar="NAME", help=names)
    root.add_argument("--vocabulary", type=tokens, metavar="N", help="tokens of the tokenizer (default: 8000)")
    root.add_argument("--out", type=some_path, default=Path("runs/corpus"), metavar="DIR", help="default: runs/corpus")
    root.set_defaults(run=run)
    return root


if __name__ == "__main__":
    sys.exit(execute(PROGRAM, parser, None))
