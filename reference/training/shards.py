"""Tokenised texts on disk, memory-mapped, so that a corpus may be larger than memory.

    tokens         the token ids of all texts, one after the other, without special tokens
    ends           for each text, where it ends in `tokens`
    mono-en        the texts in English
    pair-de+en     the texts that are translations of each other, two columns
    shards.json    what was tokenised, with which tokenizer, and what was left out

All numbers are little-endian: token ids uint16 or uint32, the others int64. The folder gets its name when all of it is
written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.files import read_json

from ..array import Array
from .texts import Segment, read_segments

INDEX = "shards.json"
BATCH = 1000  # segments that are tokenised at once


@dataclass(frozen=True)
class Shards:
    """A folder of tokenised texts."""

    directory: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `shards.json` says."""
        return read_json(self.directory / INDEX)

    @cached_property
    def tokens(self) -> Array:
        """The token ids of all texts."""
        return self._map("tokens", self.about["tokens"], self.about["dtype"])

    @cached_property
    def ends(self) -> Array:
        """Where each text ends."""
        return self._map("ends", sum(self.about["texts"].values()))

    @cached_property
    def mono(self) -> dict[str, Array]:  # {language: (n, 1)}
        """The texts of each language."""
        return {name: self._map(f"mono-{name}", n).reshape(-1, 1) for name, n in self.about["texts"].items()}

    @cached_property
    def pairs(self) -> dict[str, Array]:  # {"de+en": (n, 2)}
        """The translations of each pair of languages, in alphabetical order."""
        return {name: self._map(f"pair-{name}", 2 * n).reshape(-1, 2) for name, n in self.about["pairs"].items()}

    def text(self, i: int) -> Array:  # -> (n,)
        """The token ids of text i."""
        start = self.ends[i - 1] if i else 0
        return self.tokens[start : self.ends[i]].astype(np.int64)

    def lengths(self, i: Array) -> Array:
        """The numbers of tokens of texts."""
        return self.ends[i] - np.where(i > 0, self.ends[i - 1], 0)

    def check(self) -> Shards:
        """Itself, if all files are as long as what was written. Raises ValueError that names one that is not."""
        _ = self.tokens, self.ends, self.mono, self.pairs
        return self

    def _map(self, name: str, count: int, dtype: str = "<i8") -> Array:
        """`count` numbers of a file. Raises ValueError if it has others, as after a disk was full."""
        path = self.directory / name
        size, expected = path.stat().st_size, count * np.dtype(dtype).itemsize
        if size != expected:
            raise ValueError(
                f"{path}: expected {expected:,} bytes, got {size:,}; remove {self.directory}, and it is made again"
            )
        return np.memmap(path, dtype, "r")


def shard(
    files: Sequence[str | os.PathLike[str]],
    tokenizer: ErnieMTokenizer,
    directory: str | os.PathLike[str],
    longest: int = 126,
    progress: Callable[[int], None] = lambda segments: None,
    ready: Path | None = None,
) -> Shards:
    """Tokenise files into `directory`, or find there what was made of the same files by the same tokenizer.

    longest: the most tokens of a text. A longer sentence is cut into parts of this length; a longer text that
        has translations is left out, since its parts would not be aligned. `about["left_out"]` counts them.
    ready: a folder that is copied if it holds what was made of the same files by the same tokenizer.

    Raises ValueError that names the file if there is no text in it, or if the directory holds something else.
    """
    target = Path(directory)
    made_of = {
        "files": [identity(Path(file)) for file in files],
        "tokenizer": fingerprint(tokenizer),
        "longest": longest,
    }
    if target.exists():
        if other := _difference(target, made_of):
            raise ValueError(f"{target}: made {other}; remove it, or choose another place")
        return Shards(target).check()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if ready is not None and (ready / INDEX).exists() and not _difference(ready, made_of):
            shutil.copytree(Shards(ready).check().directory, partial)
        else:
            partial.mkdir()
            writer = _Writer(partial, "<u2" if len(tokenizer) <= 2**16 else "<u4", longest)
            for file in files:
                writer.file(file, tokenizer, progress)
            about = made_of | writer.about()
            (partial / INDEX).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Shards(target)


def _difference(directory: Path, made_of: dict[str, Any]) -> str:
    """In what the making of a folder differs from this; empty if in nothing."""
    about = Shards(directory).about
    others = {"files": "of other files", "tokenizer": "by another tokenizer"}
    others["longest"] = f"with longest {about.get('longest')}, not {made_of['longest']}"
    return " and ".join(text for key, text in others.items() if about.get(key) != made_of[key])


def fingerprint(tokenizer: ErnieMTokenizer) -> str:
    """A digest of the vocabulary and of how texts are cut, which decide what ids mean."""
    names = json.dumps([tokenizer.get_vocab(), tokenizer.lone_marker], sort_keys=True)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def identity(path: Path) -> dict[str, str]:
    """A file's name, and a digest of its content, which is read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**16):
            digest.update(part)
    return {"name": path.name, "sha256": digest.hexdigest()}


@dataclass
class _Writer:
    """Appends segments to the files of a folder."""

    directory: Path
    dtype: str
    longest: int
    texts: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    segments: int = 0
    tokens: int = 0
    pending: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def file(self, file: str | os.PathLike[str], tokenizer: ErnieMTokenizer, progress: Callable[[int], None]) -> None:
        """Tokenise a file and append its texts."""
        before, segments = self.tokens, read_segments(file)
        while batch := list(islice(segments, BATCH)):
            self.add(batch, tokenizer)
            progress(self.segments)
        if self.tokens == before:
            out = "".join(f"; left out: {count:,} {what}" for what, count in self.left_out.items())
            raise ValueError(f"{os.fspath(file)}: expected texts, got none of at most {self.longest} tokens{out}")

    def add(self, segments: Sequence[Segment], tokenizer: ErnieMTokenizer) -> None:
        """Tokenise segments and append them."""
        names = [(s, name) for s, segment in enumerate(segments) for name in segment]
        encoded = tokenizer([segments[s][name] for s, name in names], add_special_tokens=False)["input_ids"]
        found: list[dict[str, list[int]]] = [{} for _ in segments]
        for (s, name), ids in zip(names, encoded, strict=True):
            found[s][name] = ids
        for texts in found:
            self._segment(texts)
        self.segments += len(segments)
        # Files are opened one at a time: a hundred languages have five thousand pairs.
        for name, values in self.pending.items():
            with open(self.directory / name, "ab") as file:
                file.write(np.array(values, self.dtype if name == "tokens" else "<i8").tobytes())
        self.pending.clear()

    def about(self) -> dict[str, Any]:
        """What was written."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("texts", "pairs", "left_out")}
        return {"dtype": self.dtype, "segments": self.segments, "tokens": self.tokens} | counts

    def _segment(self, texts: dict[str, list[int]]) -> None:
        parallel = len(texts) > 1
        kept: dict[str, int] = {}
        for name, ids in sorted(texts.items()):
            if not ids or (parallel and len(ids) > self.longest):
                self.left_out["empty" if not ids else "translations that are too long"] += 1
                continue
            for start in range(0, len(ids), self.longest):
                kept[name] = self._text(name, ids[start : start + self.longest])
        for a, b in combinations(kept, 2):
            self.pending[f"pair-{a}+{b}"] += kept[a], kept[b]
            self.pairs[f"{a}+{b}"] += 1

    def _text(self, language: str, ids: Sequence[int]) -> int:
        number = sum(self.texts.values())
        self.tokens += len(ids)
        self.pending["tokens"] += ids
        self.pending["ends"].append(self.tokens)
        self.pending[f"mono-{language}"].append(number)
        self.texts[language] += 1
        return number
