"""`Encoder` used from Python: the vectors of the command line, and errors that name the argument or the text.

Seen red: an empty list passed on to the tokenizer; an error without the text's name; a batch size of 0 accepted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import corpus, make_checkpoint

from ernie_m.reference import ErnieMForTokenClassification
from ernie_m.reference.cli.program import main
from ernie_m.reference.tasks import POLICIES, POOLINGS, Encoder

LONG = " ".join(corpus("de")[:6])
TEXTS = [*corpus("en", "ja")[::40], "", LONG, "short"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("long", ["truncate", "window-mean"])
def test_vectors_equal_those_of_the_command(checkpoint: Path, tmp_path: Path, pooling: str, long: str) -> None:
    encoder = Encoder.from_pretrained(checkpoint, pooling, long, batch_size=3)
    arguments = ["--model", str(checkpoint), "--pooling", pooling, "--long", long, "--batch-size", "3"]
    assert main(["encode", *arguments, "--output", str(tmp_path / "x.npy"), "--", *TEXTS]) == 0
    found = encoder.vectors(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.load(tmp_path / "x.npy"))
    assert encoder.truncated == (long == "truncate")


def test_vectors_do_not_depend_on_the_batch_size(checkpoint: Path) -> None:
    alone, together = (Encoder.from_pretrained(checkpoint, batch_size=n).vectors(TEXTS) for n in (1, len(TEXTS)))
    np.testing.assert_allclose(alone, together, rtol=0, atol=2e-5 * np.abs(together).max())


@pytest.mark.parametrize("long", POLICIES)
def test_vectors_of_no_texts_have_no_rows(checkpoint: Path, long: str) -> None:
    assert Encoder.from_pretrained(checkpoint, long=long).vectors([]).shape == (0, 16)


def test_vectors_names_a_text_that_is_too_long(checkpoint: Path) -> None:
    encoder = Encoder.from_pretrained(checkpoint, long="error", batch_size=1)
    with pytest.raises(ValueError, match=r"^texts\[2\]: expected at most 34 tokens, \[CLS\] and \[SEP\] included, got"):
        encoder.vectors(["a", "b", LONG])
    with pytest.raises(ValueError, match=r"^the third: expected at most 34 tokens"):
        encoder.vectors(["a", "b", LONG], names=["the first", "the second", "the third"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"pooling": "max"}, "pooling: expected one of cls, mean, pooler, first-last, got 'max'"),
        ({"long": "cut"}, "long: expected one of error, truncate, window-mean, got 'cut'"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": "3"}, "batch_size: expected an integer, got '3'"),
        ({"batch_size": 1.5}, "batch_size: expected an integer, got 1.5"),
        ({"center": "yes"}, "center: expected True or False, got 'yes'"),
        ({"normalize": 1}, "normalize: expected True or False, got 1"),
    ],
)
def test_encoder_rejects_a_wrong_argument_by_name(checkpoint: Path, argument: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        Encoder.from_pretrained(checkpoint, **argument)


def test_encoder_rejects_a_model_without_a_pooler(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, ErnieMForTokenClassification)
    with pytest.raises(ValueError, match=r"^pooling: .* has no pooler; expected cls, mean or first-last, got pooler$"):
        Encoder.from_pretrained(directory, "pooler")
