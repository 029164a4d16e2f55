"""Shared by the tokenizer's tests: its files, strategies for texts, and other piece models, trained when needed."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "fixtures" / "tokenizer_multi"
MODEL, VOCABULARY = FILES / "sentencepiece.bpe.model", FILES / "vocab.txt"

# Texts that have tripped tokenizers: special tokens and look-alikes; spaces and digits of all kinds; characters that
# normalisation expands, composes, deletes or turns into space; longer lower case; emoji sequences.
STUMBLING_BLOCKS = [
    *(
        "[MASK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "[mask]",
        "［ＭＡＳＫ］",
        " ",
        "  ",
        "\t",
        "\n",
        "▁",
        "▁ ▁",
        "\u200b",
        "\u3000",
    ),
    *(
        "\u00a0",
        "\ufeff",
        "\ufffd",
        "\u200d",
        "\u00ad",
        "2024",
        "10:30",
        "１２",
        "٣٤",
        "½",
        "²",
        "①",
        "➀",
        "Ⅷ",
        "一二三",
    ),
    *(
        "中文",
        "㐀",
        "𠮷",
        "々",
        "。",
        "，",
        "～",
        "~",
        "「",
        "The",
        "ship",
        " is",
        "Straße",
        "ΑΣ",
        "İ",
        "ǅ",
        "™",
        "℡",
        "㎏",
    ),
    *(
        "…",
        "ﬁ",
        "e\u0301",
        "ä\u0323",
        "ำ",
        "ㄱ",
        "한",
        "\u1112\u1161\u11ab",
        "ﾊﾟ",
        "が",
        "か\u3099",
        "क़",
        "\x00",
        "\x07",
    ),
    *("\x0b", "\x7f", "\u0344", "👩‍👩‍👧", "🇫🇷", "مرحبا", "שלום", "မြန်မာ", "n't", " '", "don't"),
]


@cache
def golden() -> list[dict[str, Any]]:
    """The items of golden.json: the tokens of transformers and Paddle for each text."""
    items: list[dict[str, Any]] = json.loads((FILES / "golden.json").read_text(encoding="utf-8"))["items"]
    return items


def is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogate."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in text)


def golden_texts() -> list[str]:
    """The golden texts that can be tokenized."""
    return [item["text"] for item in golden() if is_unicode(item["text"])]


def pieces_of_text() -> st.SearchStrategy[str]:
    """Short texts: any Unicode text, stumbling blocks, and parts of golden texts."""
    anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    slices = st.builds(
        lambda text, i, n: text[i : i + n], st.sampled_from(golden_texts()), st.integers(0, 40), st.integers(0, 9)
    )
    return st.one_of(st.sampled_from(STUMBLING_BLOCKS), anything, slices)


def texts(max_pieces: int = 8) -> st.SearchStrategy[str]:
    """Texts made of such pieces."""
    return st.lists(pieces_of_text(), max_size=max_pieces).map("".join)


@cache
def corpus() -> list[str]:
    """Ordinary sentences in many languages, to train piece models on."""
    files = sorted((ROOT / "tests" / "fixtures" / "sentences").glob("*.txt"))
    return [line for path in files for line in path.read_text(encoding="utf-8").splitlines()[:40]]


@cache
def trained(**options: Any) -> bytes:
    """A small piece model, trained by sentencepiece with these options."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=1500,
        character_coverage=0.995,
        hard_vocab_limit=False,
        minloglevel=3,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def write_files(folder: Path, model: bytes) -> tuple[Path, Path]:
    """Write the model and its vocab.txt."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    paths = folder / "sentencepiece.bpe.model", folder / "vocab.txt"
    paths[0].write_bytes(model)
    lines = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]
    paths[1].write_bytes("".join(f"{line}\n" for line in lines).encode())
    return paths


# Piece models that differ from ERNIE-M's in how they treat spaces and unknown characters.
OTHER_MODELS: dict[str, dict[str, Any]] = {
    "keeps spaces": {"remove_extra_whitespaces": False},
    "identity": {"normalization_rule_name": "identity"},
    "bare": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "marker behind": {"treat_whitespace_as_suffix": True},
    "byte fallback": {"byte_fallback": True},
    "across spaces": {"split_by_whitespace": False, "split_by_number": False, "split_by_unicode_script": False},
    "bpe": {"model_type": "bpe"},
    "own symbols": {"user_defined_symbols": "▁foo,<u>"},
}
