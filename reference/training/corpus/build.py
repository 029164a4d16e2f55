"""The whole run: packages -> texts -> segments -> splits -> tokenizer, labelled data and report, written at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.new_files import directory, replacing

from ..shards import shard
from . import firefox, help, pieces, unicode
from .align import Segment, align
from .fetch import Package, differences, download, recorded, take
from .jobs import jobs
from .recipe import CLDR, HELP, UDHR, needs
from .report import packages_used, page, report
from .split import split
from .text import Text

Say = Callable[[str], None]
# The parts that training reads, and the longest text in tokens of the recipe that ships (reference/demo/recipe.json).
TOKENISED, LONGEST = ("train", "dev"), 62


def build(
    languages: Sequence[str],
    folder: Path | None,
    out: Path,
    exact: bool,
    say: Say,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Make the corpus in `out` from the packages in `folder`, or from ones that are fetched now. Returns the report.

    vocabulary: how many tokens the tokenizer gets, by default `pieces.VOCABULARY`. `say` is told how it goes.

    Raises OSError or ValueError if a client or a package is missing, a package is damaged, or (with `exact`) is not the
    one on record.
    """
    with directory(out):
        return _build(languages, folder, out, exact, say, pieces.VOCABULARY if vocabulary is None else vocabulary)


def _build(
    languages: Sequence[str], folder: Path | None, out: Path, exact: bool, say: Say, vocabulary: int
) -> dict[str, Any]:
    wanted, record = needs(languages), recorded()
    if folder is None:
        say(f"fetching {len(wanted)} packages")
        versions = {name: about["version"] for name, about in record.items()} if exact else None
        folder = download(wanted, out, versions)
    packages = take(wanted, folder)
    differing = differences(packages, record)
    if differing and exact:
        raise ValueError(f"--exact: {len(differing)} packages differ from the recorded run: {'; '.join(differing)}")
    for line in differing:
        say(f"note: {line}")
    removed: Counter[tuple[str, str]] = Counter()
    segments = align(read(packages, languages, say), removed)
    say(f"{len(segments):,} segments; splitting them")
    parts = split(segments, languages, removed)
    if not all(parts.values()):
        raise ValueError(f"{folder}: these packages hold too little text: {len(segments)} segments in all")
    say("training the tokenizer")
    files = tokenizer_files(parts, languages, vocabulary)
    labelled = jobs(parts, languages)
    used = packages_used(packages, parts)
    about = {
        "tokens": files["tokenizer/vocab.txt"].count(b"\n"),
        **{
            name: pieces.statistics(files["tokenizer/sentencepiece.bpe.model"], parts[name], languages)
            for name in ("train", "test")
        },
    }
    found = report(used, differing, parts, languages, removed, about, labelled)
    files |= {f"{name}.jsonl": lines(map(row, rows)) for name, rows in parts.items()}
    files |= {f"jobs/{name}.jsonl": lines(rows) for name, rows in labelled.items()}
    files |= {"report.json": pretty(found), "report.md": page(found).encode("utf-8"), "packages.json": pretty(used)}
    say("tokenising the texts for training")
    files |= shards(files)
    write(out, files)
    return found


def shards(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The tokenised texts that training reads, where the pretraining command finds them."""
    found: dict[str, bytes] = {}
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        texts = {name: f"{name}.jsonl" for name in TOKENISED}
        needed = [*texts.values(), *(name for name in files if name.startswith("tokenizer/"))]
        write(place, {name: files[name] for name in needed})
        tokenizer = ErnieMTokenizer.from_pretrained(place / "tokenizer")
        for name, file in texts.items():
            made = shard([place / file], tokenizer, place / "shards" / name, LONGEST)
            found |= {f"shards/{name}/{path.name}": path.read_bytes() for path in made.directory.iterdir()}
    return found


def read(packages: Sequence[Package], languages: Sequence[str], say: Say) -> dict[str, dict[str, Text]]:
    """Language -> key -> text, of all packages."""
    texts: dict[str, dict[str, Text]] = {language: {} for language in languages}
    for package in packages:
        say(f"reading {package.need.name} {package.version}")
        language = package.need.language
        if language is not None:
            reader = help.read if package.need.source == HELP else firefox.read
            found = {language: reader(package.path)}
        else:
            readers = {CLDR: unicode.read_names, UDHR: unicode.read_declaration}
            found = readers[package.need.source](package.path, languages)
        if not found or not all(found.values()):
            raise ValueError(f"{package.path}: expected the texts of a {package.need.source} package, found none")
        for name, each in found.items():
            texts[name].update(each)
    return texts


def tokenizer_files(
    parts: Mapping[str, Sequence[Segment]], languages: Sequence[str], vocabulary: int
) -> dict[str, bytes]:
    """The model and `vocab.txt`, trained on the training split."""
    size = vocabulary - pieces.SPECIAL + pieces.NOT_LISTED
    try:
        model = pieces.train_model(pieces.sample(parts["train"], languages), size, "unigram", pieces.COVERAGE)
    except RuntimeError as error:
        raise ValueError(f"vocabulary: expected a size that the texts allow, got {vocabulary}: {error}") from None
    names = "".join(f"{token}\n" for token in pieces.vocabulary(model))
    return {"tokenizer/sentencepiece.bpe.model": model, "tokenizer/vocab.txt": names.encode("utf-8")}


def row(segment: Segment) -> dict[str, str]:
    """A segment as a flat object: texts by language, and what begins with "_" about them."""
    texts = {language: text.text for language, text in segment.texts.items()}
    return {"_key": segment.key, "_page": segment.page, **texts}


def lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines, in UTF-8."""
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows).encode("utf-8")


def pretty(value: Any) -> bytes:
    """JSON for people too."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


def write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write all files or none: the old ones stay until the new ones are complete."""
    paths = [out / name for name in files]
    with ExitStack() as stack:
        for folder in sorted({path.parent for path in paths}):
            stack.enter_context(directory(folder))
        opened = stack.enter_context(replacing(*paths))
        for file, data in zip(opened, files.values(), strict=True):
            file.write(data)
