"""The checkpoint that ships: its files fit together, it has learned, and its model card says what it reaches."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ernie_m.reference import ErnieMConfig, ErnieMForMaskedLM, ErnieMModel, demo
from ernie_m.reference.parameters import flatten
from ernie_m.reference.tasks import Encoder
from ernie_m.reference.training.retrieval import centred
from ernie_m.tokenizer import ErnieMTokenizer

DEMO = Path(__file__).resolve().parents[3] / "reference" / "demo"


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "sentencepiece.bpe.model"))


def lines(name: str) -> list[str]:
    text = (DEMO / name).read_bytes().decode("utf-8")
    assert text.endswith("\n") and "\r" not in text, name
    return text[:-1].split("\n")


def script(character: str) -> str:
    return unicodedata.name(character).split()[0].split("-")[0]


def test_the_folder_takes_at_most_four_megabytes_and_contains_no_path() -> None:
    files = [path for path in DEMO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    for path in files:
        assert str(DEMO.parent.parent).encode() not in path.read_bytes(), path.name


def test_vocabulary_is_that_of_the_sentencepiece_model(processor: sentencepiece.SentencePieceProcessor) -> None:
    vocab = lines("vocab.txt")
    size = processor.get_piece_size()
    assert len(vocab) == size + 2 == ErnieMConfig.from_pretrained(DEMO).vocab_size
    assert vocab[:4] == ["[CLS]", "[PAD]", "[SEP]", "[UNK]"] and vocab[-1] == "[MASK]"
    assert [processor.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert all(vocab[i + 1] == processor.id_to_piece(i) for i in range(3, size))
    assert len(set(vocab)) == len(vocab)


def test_sentences_are_eight_short_ones_in_eight_languages_and_four_scripts() -> None:
    found = demo.sentences()
    assert len(found) == len(set(found)) == len(set(demo.languages())) == 8
    assert set(demo.languages()) == set(demo.retrieval()[1])
    assert len({script(next(c for c in line if c.isalpha())) for line in found}) >= 4
    assert lines("sentences.tsv")[0].startswith("# This Source Code Form is subject to the terms of the Mozilla Public")
    tokenizer = ErnieMTokenizer.from_pretrained(DEMO)
    rows = tokenizer(found)["input_ids"]
    assert max(map(len, rows)) <= 24 and not any(tokenizer.unk_token_id in row for row in rows)


def test_weights_are_those_of_the_recipe_s_model_in_half_precision() -> None:
    """Heads of 16, so that the kernels run on them."""
    config, recipe = ErnieMConfig.from_pretrained(DEMO), json.loads((DEMO / "recipe.json").read_text("utf-8"))
    assert {name: getattr(config, name) for name in recipe["model"]} == recipe["model"]
    assert config.hidden_size // config.num_attention_heads >= 16
    for cls in (ErnieMModel, ErnieMForMaskedLM):
        assert {x.dtype for x in flatten(cls.from_pretrained(DEMO, dtype=np.float16).parameters).values()} == {
            np.dtype(np.float16)
        }


def test_nothing_is_initialised_when_it_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    ErnieMModel.from_pretrained(DEMO)
    assert capsys.readouterr().err == ""


def test_each_sentence_s_translation_is_its_nearest() -> None:
    """Sentences that were held out from training, centred by language."""
    layer, means = demo.retrieval()
    model, tokenizer = ErnieMModel.from_pretrained(DEMO), ErnieMTokenizer.from_pretrained(DEMO)
    vectors = Encoder(model, tokenizer, layer=layer).vectors(demo.sentences())
    unit = centred(vectors, np.array([means[name] for name in demo.languages()]))
    nearest = (unit @ unit.T - 2 * np.eye(8)).argmax(axis=1)
    assert nearest.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_the_masked_language_model_prefers_the_right_words() -> None:
    """Predicted from its translation alone, each sentence's words get a higher probability than from another's."""
    from ernie_m.reference.objectives import Vocabulary, camlm, collate

    model, tokenizer = ErnieMForMaskedLM.from_pretrained(DEMO), ErnieMTokenizer.from_pretrained(DEMO)
    vocabulary = Vocabulary(len(tokenizer), tokenizer.mask_token_id)
    rows = tokenizer(demo.sentences(), add_special_tokens=False)["input_ids"]

    def loss(first: list[int], second: list[int]) -> float:
        seed = next(s for s in range(99) if np.random.default_rng(s).integers(2) == 1)
        options = {"masked_sides": "one", "ratio": 1.0, "positions": "again"}
        e = camlm(first, second, vocabulary, np.random.default_rng(seed), **options)  # type: ignore[arg-type]
        return float(model(**collate([e], vocabulary))["loss"])

    right = [loss(rows[i + 4], rows[i]) for i in range(4)]
    wrong = [loss(rows[4 + (i + 1) % 4], rows[i]) for i in range(4)]
    assert all(a < b for a, b in zip(right, wrong, strict=True)), (right, wrong)


def test_the_card_has_the_figures_and_they_are_above_the_baseline() -> None:
    """For every pair with English, the interval of the margin over tf-idf is above 0."""
    figures = json.loads((DEMO / "figures.json").read_text("utf-8"))
    card = (DEMO / "README.md").read_text("utf-8")
    assert figures["items"] >= 450 and len(figures["pairs"]) == 7
    for name, row in figures["pairs"].items():
        assert row["low"] > 0, (name, row)
        assert f"| {name} | {row['model']:.3f} | {row['raw']:.3f} | {row['tfidf']:.3f} |" in card
    mean = np.mean([row["model"] for row in figures["pairs"].values()])
    assert f"Mean: {mean:.3f} centred" in card and mean >= 0.5
    for about in figures["heads"].values():
        cells = [f"{about['languages'][name]:.2f}" for name in sorted(about["languages"])]
        assert len(cells) in (0, 8) and " | ".join([f"| {about['all']:.2f}", *cells]) in card


def test_the_log_is_that_of_the_recipe() -> None:
    """Steps in order, the loss falling from about ln V."""
    steps = [row for row in map(json.loads, lines("log.jsonl")) if "norm" in row]
    numbers = [row["step"] for row in steps]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] <= json.loads((DEMO / "recipe.json").read_text("utf-8"))["settings"]["steps"]
    assert abs(steps[0]["camlm"] - np.log(8000)) < 1 and steps[-1]["camlm"] < steps[0]["camlm"] - 2.5
