"""Loading piece models: whole ones, truncated ones, and files that are not models.

Seen red: `field_numbers` not called; the file's name missing from the message; numbers returned for unknown pieces.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.tokenizer import ErnieMTokenizer, piece_model
from ernie_m.tokenizer.piece_model import CHARACTERS_PER_THREAD, FEW_TEXTS, PieceModel, field_numbers, threads_for
from ernie_m.tokenizer.sampling import sampling_options

DATA = MODEL.read_bytes()
WHOLE = PieceModel(DATA, "whole")


def field_ends(data: bytes) -> list[int]:
    """The position after each top-level field, by walking over the message."""
    ends, at = [], 0
    while at < len(data):
        length, shift, at = 0, 0, at + 1
        while True:
            length, shift, at = length | (data[at] & 127) << shift, shift + 7, at + 1
            if data[at - 1] < 128:
                break
        at += length
        ends.append(at)
    return ends


ENDS = field_ends(DATA)


def test_field_numbers_of_the_whole_model() -> None:
    assert {1, 2, 3} <= field_numbers(DATA)
    assert field_numbers(DATA[: ENDS[100]]) == {1}
    assert field_numbers(b"") == set()
    # A varint (field 6), 8 and 4 bytes (7 and 8), and a two-byte length.
    assert field_numbers(
        b"\x30\x80\x01" + b"\x39" + b"12345678" + b"\x45" + b"1234" + b"\x0a\x80\x01" + b"x" * 128
    ) == {6, 7, 8, 1}


@settings(max_examples=40)
@given(end=st.one_of(st.integers(0, len(DATA) - 1), st.sampled_from(ENDS[:-1])))
def test_a_truncated_model_is_rejected_by_name(end: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    cut = DATA[:end]
    if {1, 2, 3} <= field_numbers(cut) and end in ENDS:
        return  # complete: the remaining fields are not needed
    path = tmp_path_factory.getbasetemp() / "cut.model"
    path.write_bytes(cut)
    with pytest.raises(ValueError, match=r"sentencepiece_model_file: .*cut\.model"):
        ErnieMTokenizer(path, VOCABULARY)


@settings(max_examples=40)
@given(data=st.binary(max_size=300))
def test_garbage_is_rejected_by_name(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.model"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"sentencepiece_model_file: .*garbage\.model"):
        PieceModel.read(path)


def test_files_in_the_wrong_order_or_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab\.txt is not a sentencepiece model \(the model is the first argument"):
        ErnieMTokenizer(VOCABULARY, MODEL)
    with pytest.raises(FileNotFoundError, match=r"sentencepiece_model_file: .*none\.model does not exist"):
        ErnieMTokenizer(tmp_path / "none.model", VOCABULARY)


@given(texts())
def test_pieces_joined_are_the_normalised_text(text: str) -> None:
    (pieces,) = WHOLE.pieces([text])
    assert "".join(map(WHOLE.text_of, pieces)) == WHOLE.normalise(text)[0]
    assert all(isinstance(piece, str) or WHOLE.piece_of(WHOLE.text_of(piece)) == piece for piece in pieces)
    assert not any(isinstance(piece, str) and isinstance(WHOLE.piece_of(piece), int) for piece in pieces)
    drawn = PieceModel(DATA, "", {"enable_sampling": True})
    assert "".join(map(drawn.text_of, drawn.pieces([text])[0])) == WHOLE.normalise(text)[0]


@given(st.lists(texts(), min_size=1, max_size=2 * FEW_TEXTS))
def test_pieces_do_not_depend_on_the_batch_and_the_threads(batch: list[str]) -> None:
    """Seen red: numbers for unknown pieces where texts are cut one by one."""
    alone = [WHOLE.pieces([text])[0] for text in batch]
    assert WHOLE.pieces(batch) == alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piece_model, "FEW_TEXTS", 0)
        patch.setattr(piece_model, "threads_for", lambda characters: 3)
        assert WHOLE.pieces(batch) == alone


def test_threads_for_is_one_for_little_text_and_in_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen red: as many threads as processors in a child."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    assert [threads_for(n * CHARACTERS_PER_THREAD) for n in (0, 1, 4, 100)] == [1, 2, 5, 6]
    assert threads_for(CHARACTERS_PER_THREAD - 1) == 1
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert threads_for(100 * CHARACTERS_PER_THREAD) == 1


@given(texts())
def test_is_plain_means_that_positions_are_unchanged(text: str) -> None:
    normalised, source = WHOLE.normalise(text)
    assert len(source) == len(normalised) + 1
    if WHOLE.is_plain(text):
        assert source == [0, *range(len(text) + 1)]


def test_pickle_keeps_the_model_and_its_sampling() -> None:
    model = PieceModel(DATA, "", {"enable_sampling": True, "alpha": 0.5})
    again = pickle.loads(pickle.dumps(model))
    assert again.serialised() == DATA and again.sampling == model.sampling


def test_sampling_options_default_to_those_of_transformers() -> None:
    assert sampling_options({}) == sampling_options({"alpha": 0.5, "nbest_size": 1}) == {}
    assert sampling_options({"enable_sampling": True}) == {"enable_sampling": True, "nbest_size": 64, "alpha": 0.1}
