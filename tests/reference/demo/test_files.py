"""The demo checkpoint is what its script makes: tokenizer files, configuration and weights; and the corpus is clean."""

from __future__ import annotations

import importlib.util
import unicodedata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import sentencepiece
from rounding import LIBM, U32

from ernie_m.reference import ErnieMConfig, ErnieMModel
from ernie_m.reference.parameters import flatten, initialise, shapes

DEMO = Path(__file__).resolve().parents[3] / "reference" / "demo"
CORPUS = sorted((DEMO / "corpus").glob("*.txt"))
# The first word of its letters' Unicode names. Japanese has three scripts; one tells it from Chinese.
SCRIPTS = {
    "ar": "ARABIC",
    "bn": "BENGALI",
    "el": "GREEK",
    "he": "HEBREW",
    "hi": "DEVANAGARI",
    "ja": "HIRAGANA",
    "ko": "HANGUL",
    "ru": "CYRILLIC",
    "th": "THAI",
    "uk": "CYRILLIC",
    "zh": "CJK",
}


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The training script, loaded from the checkout, which has the corpus."""
    spec = importlib.util.spec_from_file_location("train_demo", DEMO / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "sentencepiece.bpe.model"))


def lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n") and "\r" not in text, path.name
    return text[:-1].split("\n")


def script(character: str) -> str:
    return unicodedata.name(character).split()[0].split("-")[0]


def test_corpus_has_many_languages_in_their_scripts() -> None:
    assert len(CORPUS) >= 15
    for path in CORPUS:
        letters = [script(c) for line in lines(path) for c in line if c.isalpha()]
        expected = SCRIPTS.get(path.stem, "LATIN")
        share = letters.count(expected) / len(letters)
        # Japanese mixes scripts; elsewhere only abbreviations are in another script.
        assert share > (0.3 if path.stem == "ja" else 0.95), (path.name, expected, share)
    assert len({SCRIPTS.get(path.stem, "LATIN") for path in CORPUS}) >= 8


def test_corpus_sentences_are_clean_and_distinct() -> None:
    found = [line for path in CORPUS for line in lines(path)]
    assert len(found) == len(set(found))
    for line in found:
        assert line and line == line.strip() and line == unicodedata.normalize("NFC", line), line
        assert not any(unicodedata.category(c) in ("Cc", "Co", "Cn") for c in line), line
    assert all(80 <= len(lines(path)) <= 150 for path in CORPUS)


def test_corpus_says_the_same_ten_sentences_in_every_language() -> None:
    for path in CORPUS:
        first = lines(path)[:10]
        assert "30" in first[2] and "12" in first[8] and "50" in first[8], path.name
        assert first[3][-1] in ("?", "？", ";", "؟", "。", "น"), first[3]


def test_read_corpus_takes_every_line_in_order(train: ModuleType) -> None:
    assert train.read_corpus() == [line for path in CORPUS for line in lines(path)]


def test_vocabulary_is_that_of_the_sentencepiece_model(processor: sentencepiece.SentencePieceProcessor) -> None:
    vocab = lines(DEMO / "vocab.txt")
    size = processor.get_piece_size()
    assert size <= 8000 and len(vocab) == size + 2
    assert vocab[:4] == ["[CLS]", "[PAD]", "[SEP]", "[UNK]"] and vocab[-1] == "[MASK]"
    assert [processor.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert all(vocab[i + 1] == processor.id_to_piece(i) for i in range(3, size))
    assert len(set(vocab)) == len(vocab)
    assert not any(processor.is_byte(i) or processor.is_control(i) for i in range(3, size))


def test_training_again_reproduces_the_shipped_vocabulary(
    train: ModuleType, processor: sentencepiece.SentencePieceProcessor
) -> None:
    again = train.train_tokenizer(train.read_corpus())
    assert train.vocabulary(again) == lines(DEMO / "vocab.txt")
    other = sentencepiece.SentencePieceProcessor(model_proto=again)
    size = processor.get_piece_size()
    assert [other.get_score(i) for i in range(size)] == [processor.get_score(i) for i in range(size)]


def test_tokenizer_covers_the_corpus_and_the_sentences(
    train: ModuleType, processor: sentencepiece.SentencePieceProcessor
) -> None:
    for line in [*train.read_corpus(), *lines(DEMO / "sentences.txt")]:
        assert processor.unk_id() not in processor.encode(line), line
    # nmt_nfkc, as in ERNIE-M: full-width forms and ligatures are decomposed, and a space is put in front.
    assert "".join(processor.encode("Ａ\ufb01", out_type=str)) == "▁Afi"


def test_sentences_are_few_short_and_in_several_scripts(processor: sentencepiece.SentencePieceProcessor) -> None:
    found = lines(DEMO / "sentences.txt")
    assert 6 <= len(found) == len(set(found)) <= 8
    assert len({script(next(c for c in line if c.isalpha())) for line in found}) >= 5
    longest = ErnieMConfig.from_pretrained(DEMO).max_length
    # Twice as many, because the tokenizer also cuts pieces at digits and ideographs.
    assert all(2 * len(processor.encode(line)) + 2 <= longest for line in found)


def test_configuration_is_that_of_the_script(train: ModuleType) -> None:
    config = ErnieMConfig.from_pretrained(DEMO)
    assert config == train.configuration(len(lines(DEMO / "vocab.txt"))).replace(architectures=("ErnieMModel",))


def test_weights_are_those_of_the_seed_in_half_precision(train: ModuleType) -> None:
    config = ErnieMConfig.from_pretrained(DEMO)
    wanted = initialise(shapes(config, {}, pooler=True), config, train.SEED, np.dtype(np.float32))
    found = flatten(ErnieMModel.from_pretrained(DEMO, dtype=np.float16).parameters)
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        assert array.dtype == np.float16
        # Rounded to nearest; the few numbers from the normal distribution's tail are drawn with the library's log.
        exact = wanted[path].astype(np.float64)
        bound = (2.0**-11 + LIBM * U32) * np.abs(exact) + 2.0**-25
        assert (np.abs(array.astype(np.float64) - exact) <= bound).all(), path


def test_writing_the_model_again_reproduces_the_same_bytes(train: ModuleType, tmp_path: Path) -> None:
    model = ErnieMModel.from_config(train.configuration(train.PIECES + 2), seed=train.SEED, dtype=np.float16)
    model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name


def test_files_are_small_and_contain_no_path() -> None:
    for path in DEMO.iterdir():
        if path.is_file():
            content = path.read_bytes()
            assert len(content) < 400_000, path.name
            assert str(DEMO.parent.parent).encode() not in content, path.name


def test_training_depends_only_on_the_sentences(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = [f"{word} {word}s" for word in ("one", "two", "three", "four")]
    first = train.train_tokenizer(sentences, pieces=30)
    monkeypatch.chdir(tmp_path)
    assert train.train_tokenizer(sentences, pieces=30) == first
    assert train.train_tokenizer(sentences[:-1] + ["five fives"], pieces=30) != first
    assert sentencepiece.SentencePieceProcessor(model_proto=first).get_piece_size() == 30
    assert not list(tmp_path.iterdir())


def test_main_without_a_corpus_says_so_and_writes_nothing(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=r"corpus: no such folder; the corpus is only in a checkout") as stopped:
        train.main()
    assert "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())
