"""Compares the speed of the tokenizer with transformers 4.40.2 and with sentencepiece alone. Run it by hand:

    taskset -c 0 python tests/speed/tokenizer.py

The input is 200 KB of lines in 21 languages, the training text of the demo's tokenizer. With that tokenizer, as with
ERNIE-M's own, there are no unknown characters; with the tests' tokenizer, trained on other text in 15 languages, more
than a third of the lines have some. The candidates take turns, so that a busy moment of the machine affects all of
them. Figures are medians, and ratios are ratios of medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import count as count_from
from itertools import zip_longest
from pathlib import Path

import sentencepiece

from ernie_m.tokenizer import ErnieMTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO, FIXTURE = ROOT / "reference" / "demo", ROOT / "tests" / "fixtures" / "tokenizer_multi"
SIZE, ROUNDS = 200_000, 15
# The least number of characters of a line: about a sentence.
LINE = 100


def mixed_lines() -> list[str]:
    """Lines of one or more sentences in one language, alternating between languages, repeated up to 200 KB."""
    lines: dict[str, list[str]] = {}
    for path in sorted((DEMO / "corpus").glob("*.txt")):
        lines[path.stem] = [""]
        for sentence in path.read_text(encoding="utf-8").splitlines():
            if len(lines[path.stem][-1]) >= LINE:
                lines[path.stem].append("")
            lines[path.stem][-1] = f"{lines[path.stem][-1]} {sentence}".strip()
    turns = [line for group in zip_longest(*lines.values()) for line in group if line]
    count = next(n for n in count_from(1) if sum(len(turns[i % len(turns)].encode()) for i in range(n)) >= SIZE)
    return [turns[i % len(turns)] for i in range(count)]


def medians(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The median time of each candidate in seconds; the candidates alternate."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def compare(folder: Path, lines: list[str]) -> None:
    """Print the times with the tokenizer in `folder`, and the ratios of interest."""
    files = str(folder / "sentencepiece.bpe.model"), str(folder / "vocab.txt")
    ours, lower = ErnieMTokenizer(*files), ErnieMTokenizer(*files, do_lower_case=True)
    model = sentencepiece.SentencePieceProcessor(model_file=files[0])
    candidates: dict[str, Callable[[], object]] = {
        "sentencepiece, a loop": lambda: [model.encode(line) for line in lines],
        "sentencepiece, one call": lambda: model.encode(lines, num_threads=1),
        "ours": lambda: ours(lines)["input_ids"],
        "ours, with offsets": lambda: ours(lines, return_offsets_mapping=True)["offset_mapping"],
        "ours, lower-cased": lambda: lower(lines)["input_ids"],
    }
    try:
        from transformers import ErnieMTokenizer as Theirs
    except ImportError:
        print("transformers is not installed: no comparison with it")
    else:
        theirs = Theirs(files[0], vocab_file=files[1])
        candidates["transformers"] = lambda: theirs(lines)["input_ids"]
        assert ours(lines)["input_ids"] == theirs(lines)["input_ids"]
    seconds = medians(candidates)
    unknown = sum(ours.unk_token_id in ids for ids in ours(lines)["input_ids"])
    size = sum(len(line.encode()) for line in lines)
    print(f"{folder.relative_to(ROOT)}: {size:,} bytes, {len(lines):,} lines, {unknown} of them with unknown tokens")
    for name, value in seconds.items():
        print(f"  {name:26} {value * 1e3:7.1f} ms")
    mine = seconds["ours"]
    if "transformers" in seconds:
        print(f"  transformers / ours               {seconds['transformers'] / mine:5.2f}  (wanted: at least 5)")
    print(f"  ours / sentencepiece, a loop      {mine / seconds['sentencepiece, a loop']:5.2f}  (wanted: at most 3)")
    print(f"  ours / sentencepiece, one call    {mine / seconds['sentencepiece, one call']:5.2f}")
    print(f"  with offsets / without            {seconds['ours, with offsets'] / mine:5.2f}  (wanted: at most 2)")


if __name__ == "__main__":
    for tokenizer in (DEMO, FIXTURE):
        compare(tokenizer, mixed_lines())
