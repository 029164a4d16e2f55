"""Configuration files are exchanged with transformers in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference import ErnieMConfig
from ernie_m.reference.activations import ACTIVATIONS

transformers = pytest.importorskip(
    "transformers", reason="transformers 4.40.2 is not installed (it has no release for Python 3.13)"
)
FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "pad_token_id",
    "layer_norm_eps",
    "classifier_dropout",
    "act_dropout",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
)
rates = st.floats(0, 1, exclude_max=True)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that both sides accept."""
    heads = draw(st.integers(1, 8))
    found = {
        "vocab_size": draw(st.integers(2, 10**6)),
        "num_attention_heads": heads,
        "hidden_size": heads * draw(st.integers(1, 64)),
        "num_hidden_layers": draw(st.integers(0, 24)),
        "intermediate_size": draw(st.integers(1, 4096)),
        "max_position_embeddings": draw(st.integers(3, 1024)),
        "hidden_act": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "hidden_dropout_prob": draw(rates),
        "attention_probs_dropout_prob": draw(rates),
        "classifier_dropout": draw(st.none() | rates),
        "act_dropout": draw(rates),
        "layer_norm_eps": draw(st.floats(1e-12, 1)),
        "initializer_range": draw(st.floats(0, 1)),
        "pad_token_id": draw(st.integers(0, 1)),
        "problem_type": draw(st.sampled_from([None, "regression", "single_label_classification"])),
    }
    if draw(st.booleans()):
        found["num_labels"] = draw(st.integers(1, 9))
    else:
        labels = draw(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
        found["id2label"], found["label2id"] = dict(enumerate(labels)), {x: i for i, x in enumerate(labels)}
    return found


def assert_equal(ours: ErnieMConfig, theirs: Any) -> None:
    for name in FIELDS:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {i: list(heads) for i, heads in ours.pruned_heads.items()} == theirs.pruned_heads


def test_defaults_equal_transformers() -> None:
    assert_equal(ErnieMConfig(), transformers.ErnieMConfig())


@given(fields())
def test_save_pretrained_loads_in_transformers(tmp_path_factory: Any, given_fields: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("ours")
    ours = ErnieMConfig(**given_fields, extra={"type_vocab_size": 16})
    ours.save_pretrained(folder)
    theirs = transformers.ErnieMConfig.from_pretrained(folder)
    assert_equal(ours, theirs)
    assert theirs.type_vocab_size == 16


@given(fields())
def test_from_pretrained_of_what_transformers_saved(tmp_path_factory: Any, given_fields: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("theirs")
    theirs = transformers.ErnieMConfig(**given_fields)
    theirs.save_pretrained(folder)
    ours = ErnieMConfig.from_pretrained(folder)
    assert_equal(ours, theirs)
    # And back: nothing that transformers wrote is lost.
    assert transformers.ErnieMConfig.from_dict(ours.to_dict()).to_dict() == {
        **theirs.to_dict(),
        "default_mask": "pad_token",
        "architectures": None,
    }


def test_from_dict_knows_transformers_aliases() -> None:
    ours, theirs = (cls.from_dict({"num_classes": 4}) for cls in (ErnieMConfig, transformers.ErnieMConfig))
    assert_equal(ours, theirs)
    assert ours.num_labels == 4 and not ours.extra
    # transformers lists this alias too, but overwrites it with its default; in Paddle's files it is the dropout rate.
    assert transformers.ErnieMConfig.attribute_map["dropout"] == "classifier_dropout"
    ours = ErnieMConfig.from_dict({"dropout": 0.25})
    assert ours.classifier_dropout == 0.25 and not ours.extra


def test_pruned_heads_are_exchanged_both_ways(tmp_path: Path) -> None:
    ours = ErnieMConfig(pruned_heads={0: [3, 1], 2: [0]})
    ours.save_pretrained(tmp_path / "ours")
    theirs = transformers.ErnieMConfig.from_pretrained(tmp_path / "ours")
    assert_equal(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert ErnieMConfig.from_pretrained(tmp_path / "theirs").pruned_heads == ours.pruned_heads
