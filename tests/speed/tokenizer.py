"""How fast the tokenizer is, against transformers 4.40.2 and against sentencepiece alone. Run by hand:

    taskset -c 0 python tests/tokenizer/speed.py

200 KB of lines in 21 languages: the text that the demo's tokenizer is trained on. With that tokenizer there are no
unknown characters, as for ERNIE-M's own; with the tests' tokenizer, which was trained on other text in 15 languages,
most lines have some. The candidates take turns, so that a busy moment of the machine hits all of them; the figures are
medians, and the ratios are of medians.
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
# Characters of a line, about: the length of a sentence.
LINE = 100


def mixed_lines() -> list[str]:
    """Lines of one or more sentences of one language, the languages in turn, repeated until there are 200 KB."""
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
    """Seconds for each candidate, alternating."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def compare(folder: Path, lines: list[str]) -> None:
    """Print the times with the tokenizer in `folder`, and the ratios that matter."""
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
