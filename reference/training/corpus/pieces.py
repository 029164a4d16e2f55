"""The tokenizer's files: a sentencepiece model, and the `vocab.txt` that puts ERNIE-M's special tokens around it.

    vocab.txt   [CLS] [PAD] [SEP] [UNK], the model's pieces, [MASK]: token id = sentencepiece id + 1

Source: the layout of `vocab.txt` is ERNIE-M's own, as read by transformers 4.40.2, `tokenization_ernie_m.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from random import Random

import sentencepiece

from .align import Segment
from .text import UNSPACED

VOCABULARY = 8000
# Characters of each language to train on; a language written without spaces gets more, because it has more of them to
# know, and Korean too, whose syllables are letters here.
BUDGET, RAISED = 400_000, dict.fromkeys((*UNSPACED, "ko"), 2.0)
COVERAGE = 0.9999
SEED = 2021
# Special tokens of vocab.txt, and those of a model that are not in it.
SPECIAL, NOT_LISTED = 5, 3


def sample(segments: Sequence[Segment], languages: Sequence[str]) -> list[str]:
    """Texts to train on: of each language in random order (by seed) as many as fit its budget of characters."""
    chosen = []
    for language in languages:
        texts = [segment.texts[language].text for segment in segments if language in segment.texts]
        Random(f"{SEED} {language}").shuffle(texts)
        budget = BUDGET * RAISED.get(language, 1.0)
        for text in texts:
            if budget <= 0:
                break
            budget -= len(text)
            chosen.append(text)
    return chosen


def train_model(sentences: Iterable[str], pieces: int, model_type: str, coverage: float) -> bytes:
    """The file content of a sentencepiece model with `pieces` pieces, including `<unk>`, `<s>` and `</s>`.

    Raises RuntimeError if the sentences do not yield so many.
    """
    model = io.BytesIO()
    # An iterator and a writer, because the trainer would store file names in the model.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=model_type,
        vocab_size=pieces,
        character_coverage=coverage,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def vocabulary(model: bytes) -> list[str]:
    """The lines of `vocab.txt` for a sentencepiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    pieces = [processor.id_to_piece(i) for i in ids if not processor.is_control(i) and not processor.is_unknown(i)]
    return ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *pieces, "[MASK]"]


def statistics(model: bytes, segments: Sequence[Segment], languages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each language: the share of pieces that are unknown, characters a piece, and pieces a text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = {}
    for language in languages:
        texts = [segment.texts[language].text for segment in segments if language in segment.texts]
        encoded = processor.encode(texts)
        count = sum(map(len, encoded))
        unknown = sum(ids.count(processor.unk_id()) for ids in encoded)
        found[language] = {
            "unknown": round(unknown / max(count, 1), 6),
            "characters_per_piece": round(sum(map(len, texts)) / max(count, 1), 3),
            "pieces_per_text": round(count / max(len(texts), 1), 2),
        }
    return found
