"""The rows of `cpu` for the tokenizer: beside transformers, and sentencepiece alone, which is the part that all share.

The texts are 200 KB of lines in 21 languages, alternating, with the tokenizer in the package; and one short text per
call. These run on one core. A long batch, where the tokenizer uses several threads, runs on all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, islice, zip_longest
from itertools import cycle as repeated
from pathlib import Path
from typing import Any

import ernie_m.reference as reference
from ernie_m.tokenizer.new_files import replacing

Call = Callable[[], Any]

DEMO = Path(reference.__file__).resolve().parent / "demo"
SENTENCES = DEMO.parents[1] / "tests" / "fixtures" / "sentences"
MODEL, VOCABULARY = DEMO / "sentencepiece.bpe.model", DEMO / "vocab.txt"
LINES = "lines.txt"
SIZE, LONG = 200_000, 10
# The least number of characters of a line: about a sentence.
LINE = 100
SHORT, CALLS = "The cat sat on the mat.", 1000
# The ids of so many lines are compared, which is one of each language.
COMPARED = 21


def mixed_lines(corpus: Path) -> list[str]:
    """Lines of one or more sentences in one language, alternating between languages, repeated up to 200 KB."""
    lines: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.txt")):
        lines[path.stem] = [""]
        for sentence in path.read_text(encoding="utf-8").splitlines():
            if len(lines[path.stem][-1]) >= LINE:
                lines[path.stem].append("")
            lines[path.stem][-1] = f"{lines[path.stem][-1]} {sentence}".strip()
    found, size = [], 0
    for line in repeated([line for group in zip_longest(*lines.values()) for line in group if line]):
        if size >= SIZE:
            break
        found.append(line)
        size += len(line.encode())
    return found


def prepare(folder: Path) -> None:
    """Write the lines, unless the package was installed without the sentences."""
    if SENTENCES.is_dir():
        with replacing(folder / LINES) as (file,):
            file.write("\n".join(mixed_lines(SENTENCES)).encode())


def read_lines(folder: Path, times: int = 1) -> list[str]:
    """The lines that `prepare` wrote, repeated."""
    if not (folder / LINES).exists():
        raise FileNotFoundError("the sentences, tests/fixtures/sentences, are only in a checkout")
    return (folder / LINES).read_text(encoding="utf-8").splitlines() * times


def use_one_core() -> None:
    """Keep this process on one of its CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def our_tokenizer(**options: Any) -> Any:
    """Ours, with the demo's files."""
    from ernie_m.tokenizer import ErnieMTokenizer

    return ErnieMTokenizer(MODEL, VOCABULARY, **options)


def their_tokenizer() -> Any:
    """transformers', with the same files."""
    import transformers

    return transformers.ErnieMTokenizer(str(MODEL), vocab_file=str(VOCABULARY))


def first_ids(rows: Sequence[Sequence[int]]) -> list[int]:
    """The ids of the first lines, which should not differ."""
    return list(chain.from_iterable(islice(rows, COMPARED)))


def batch(tokenizer: Callable[..., Any], folder: Path, **options: Any) -> Call:
    """All lines in one call."""
    use_one_core()
    encode, lines = tokenizer(), read_lines(folder)
    return lambda: first_ids(encode(lines, **options)["input_ids"])


def long_batch(tokenizer: Callable[..., Any], folder: Path) -> Call:
    """The lines ten times over in one call, on all cores."""
    encode, lines = tokenizer(), read_lines(folder, LONG)
    return lambda: first_ids(encode(lines)["input_ids"])


def short_calls(tokenizer: Callable[..., Any], folder: Path) -> Call:
    """A thousand calls with one short text each."""
    use_one_core()
    encode = tokenizer()
    return lambda: first_ids([encode(SHORT)["input_ids"] for _ in range(CALLS)])


def piece_loop(texts: Callable[[Path], list[str]], folder: Path) -> Call:
    """sentencepiece alone, text by text: pieces, without ERNIE-M's rules, ids and masks."""
    import sentencepiece

    use_one_core()
    model = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    given = texts(folder)

    def call() -> None:
        for text in given:
            model.encode(text)

    return call


def lower_cased(folder: Path) -> Call:
    """Ours with lower-casing, whose ids differ."""
    call = batch(partial(our_tokenizer, do_lower_case=True), folder)

    def without_result() -> None:
        call()

    return without_result


ROWS: dict[str, dict[str, Callable[[Path], Call]]] = {
    "tokenizer, 200 KB of lines, one core": {
        "transformers": partial(batch, their_tokenizer),
        "ours": partial(batch, our_tokenizer),
        "ours, with offsets": partial(batch, our_tokenizer, return_offsets_mapping=True),
        "ours, lower-cased": lower_cased,
        "sentencepiece, a loop": partial(piece_loop, read_lines),
    },
    "tokenizer, 1,000 short texts, one core": {
        "transformers": partial(short_calls, their_tokenizer),
        "ours": partial(short_calls, our_tokenizer),
        "sentencepiece, a loop": partial(piece_loop, lambda folder: [SHORT] * CALLS),
    },
    "tokenizer, 2 MB of lines, all cores": {
        "transformers": partial(long_batch, their_tokenizer),
        "ours": partial(long_batch, our_tokenizer),
    },
}
