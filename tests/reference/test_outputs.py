from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from helpers import CLASSES, random_model

from ernie_m.reference.outputs import ClassifierOutput

LOGITS, MAPS = np.array([[1.0, 2.0]]), (np.ones(3),)


def output() -> ClassifierOutput[np.ndarray]:
    return ClassifierOutput(logits=LOGITS, attentions=MAPS)


def test_output_is_a_dictionary_and_a_tuple_of_the_fields_that_are_not_none() -> None:
    out = output()
    assert list(out) == list(out.keys()) == ["logits", "attentions"] and len(out) == 2 and out.loss is None
    assert out["logits"] is out.logits is out[0] is out.to_tuple()[0] is LOGITS
    assert out["attentions"] is out.attentions is out[-1] and out[:1] == (LOGITS,)
    with pytest.raises(KeyError, match="loss: expected one of logits, attentions"):
        out["loss"]


def test_output_is_made_from_pairs() -> None:
    pairs = [("logits", LOGITS), ("attentions", MAPS)]
    for given in (dict(pairs), iter(pairs)):
        out = ClassifierOutput(given)  # type: ignore[arg-type]
        assert out.loss is None and out.logits is LOGITS and out.attentions is MAPS
        assert list(out) == ["logits", "attentions"]
    with pytest.raises(TypeError, match=r"ClassifierOutput: expected the fields loss, logits, .*, got 'extra'"):
        ClassifierOutput({"extra": LOGITS})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out.__setitem__("logits", 0),
        lambda out: out.__delitem__("logits"),
        lambda out: out.update(logits=0),
        lambda out: out.setdefault("loss", 0),
        lambda out: out.pop("logits"),
        lambda out: out.popitem(),
        lambda out: out.clear(),
        lambda out: out.__ior__({"logits": 0}),
    ],
)
def test_output_is_frozen(change: Any) -> None:
    out = output()
    with pytest.raises(TypeError, match="ClassifierOutput is frozen"):
        change(out)
    assert dict(out) == {"logits": LOGITS, "attentions": MAPS}


def test_output_survives_pickle() -> None:
    out = pickle.loads(pickle.dumps(output()))
    assert type(out) is ClassifierOutput and out.loss is None and list(out) == ["logits", "attentions"]
    np.testing.assert_array_equal(out.logits, LOGITS)
    np.testing.assert_array_equal(out["attentions"][0], MAPS[0])


@pytest.mark.parametrize("cls", CLASSES)
def test_return_dict_false_returns_a_tuple(cls: Any) -> None:
    model = random_model(cls)
    ids = np.full((2, 3, 4) if "Choice" in cls.__name__ else (2, 4), 5)
    out = model(ids)
    for given in ({}, {"return_dict": True}, {"return_dict": None}):
        assert type(model(ids, **given)) is type(out)
    plain = model(ids, return_dict=False)
    assert type(plain) is tuple and len(plain) == len(out)
    assert type(model(ids, return_dict=np.False_)) is tuple
    for no in (0, "no"):
        with pytest.raises(TypeError, match=f"^return_dict: expected True or False, got {no!r}$"):
            model(ids, return_dict=no)
    for a, b in zip(plain, out.to_tuple(), strict=True):
        np.testing.assert_array_equal(a, b)
