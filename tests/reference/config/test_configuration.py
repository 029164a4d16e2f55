"""Valid and invalid values of every field, Hugging Face's and Paddle's files, and arbitrary JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference import ErnieMConfig
from ernie_m.reference.activations import ACTIVATIONS
from ernie_m.reference.config.checks import short_repr

SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
INTEGERS = (*SIZES, "num_hidden_layers", "max_position_embeddings", "pad_token_id", "num_labels")
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "act_dropout")
NUMBERS = (*RATES, "layer_norm_eps", "initializer_range")
OPTIONAL = ("classifier_dropout", "act_dropout", "num_labels", "id2label", "label2id", "problem_type", "architectures")
FIELDS = [field.name for field in dataclasses.fields(ErnieMConfig)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def refused(name: str, value: Any, kind: Any = (TypeError, ValueError), allowed: str = "expected ") -> None:
    """The error names the field, then what is allowed, then the value."""
    with pytest.raises(kind) as caught:
        ErnieMConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(name) and "\n" not in message, message
    assert allowed in message and short_repr(value) in message, message


def test_defaults_are_those_of_the_base_model() -> None:
    config = ErnieMConfig()
    wanted = {
        "vocab_size": 250002,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": 514,
        "initializer_range": 0.02,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "classifier_dropout": None,
        "act_dropout": 0.0,
        "num_labels": 2,
        "id2label": {0: "LABEL_0", 1: "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "problem_type": None,
        "default_mask": "pad_token",
        "pruned_heads": {},
        "architectures": None,
        "extra": {},
    }
    assert {name: getattr(config, name) for name in FIELDS} == wanted
    assert config.max_length == 512 and config.head_dim == 64


@pytest.mark.parametrize("name", INTEGERS)
@given(value=st.booleans() | st.floats() | st.text() | st.binary() | st.lists(st.integers()) | st.just(np.True_))
def test_integers_of_another_type_are_refused(name: str, value: Any) -> None:
    refused(name, value, TypeError, "expected an integer from ")


@pytest.mark.parametrize("name", INTEGERS)
@given(value=st.integers(max_value=-1) | st.integers(min_value=2**31) | st.just(10**5000))
def test_integers_out_of_range_are_refused(name: str, value: int) -> None:
    refused(name, value, ValueError, "expected an integer from ")


@pytest.mark.parametrize(
    ("name", "low"), [*((name, 1) for name in (*SIZES, "num_labels")), ("num_hidden_layers", 0), ("pad_token_id", 0)]
)
def test_integers_have_a_minimum(name: str, low: int) -> None:
    refused(name, low - 1, ValueError, f"from {low} to ")
    fields = {"num_attention_heads": 1, name: low, **({"pad_token_id": 0} if name == "vocab_size" else {})}
    assert getattr(ErnieMConfig(**fields), name) == low
    refused("max_position_embeddings", 2, ValueError, "from 3 to ")


@pytest.mark.parametrize("name", NUMBERS)
@given(value=st.booleans() | st.text() | st.complex_numbers() | st.lists(st.floats()))
def test_numbers_of_another_type_are_refused(name: str, value: Any) -> None:
    refused(name, value, TypeError, "expected a number ")


@pytest.mark.parametrize("name", NUMBERS)
@given(
    value=st.floats(max_value=0, exclude_max=True)
    | st.floats(min_value=1000, exclude_min=True)
    | st.sampled_from([math.nan, math.inf, 10**400])
)
def test_numbers_out_of_range_are_refused(name: str, value: float) -> None:
    refused(name, value, ValueError, "expected a number ")


@pytest.mark.parametrize("name", RATES)
@given(value=st.floats(0, 1))
def test_rates_are_below_one(name: str, value: float) -> None:
    if value < 1:
        assert getattr(ErnieMConfig(**{name: value}), name) == value
    refused(name, 1 + value, ValueError, "in [0, 1)")


def test_numbers_at_their_limits() -> None:
    """Within them, float32 can hold the number and its reciprocal, and float16 what is drawn."""
    assert ErnieMConfig(initializer_range=0).initializer_range == 0.0
    for name, low, high in (("layer_norm_eps", 1e-30, 1.0), ("initializer_range", 0.0, 1000.0)):
        for value in (low, high):
            assert getattr(ErnieMConfig(**{name: value}), name) == value
            assert np.isfinite(np.float32(1) / np.float32(value or 1))
        for value in (np.nextafter(low, -1), np.nextafter(high, 2 * high)):
            refused(name, float(value), ValueError, f"from {low:g} to {high:g}")


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_accepted_only_for_optional_fields(name: str) -> None:
    if name in OPTIONAL:
        ErnieMConfig(**{name: None})
    else:
        refused(name, None)


@pytest.mark.parametrize("name", ["hidden_act", "problem_type", "default_mask"])
@given(value=json_values.filter(lambda value: value is not None and value not in list(ACTIVATIONS)))
def test_names_must_be_known(name: str, value: Any) -> None:
    refused(name, value, ValueError, "expected one of '" if name != "problem_type" else "expected one of None, '")


@given(st.integers(1, 64), st.integers(1, 64))
def test_num_attention_heads_must_divide_hidden_size(hidden: int, heads: int) -> None:
    if hidden % heads == 0:
        assert ErnieMConfig(hidden_size=hidden, num_attention_heads=heads).head_dim * heads == hidden
        return
    message = f"^num_attention_heads: expected a divisor of hidden_size = {hidden}, got {heads}$"
    with pytest.raises(ValueError, match=message):
        ErnieMConfig(hidden_size=hidden, num_attention_heads=heads)


def test_pad_token_must_be_in_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"^pad_token_id: expected an integer from 0 to 9, got 10$"):
        ErnieMConfig(vocab_size=10, pad_token_id=10)


def test_numpy_numbers_become_python_numbers(tmp_path: Path) -> None:
    config = ErnieMConfig(vocab_size=np.int64(7), layer_norm_eps=np.float32(0.5), id2label={np.int32(0): "a"})
    assert type(config.vocab_size) is int and type(config.layer_norm_eps) is float
    config.save_pretrained(tmp_path)
    assert ErnieMConfig.from_pretrained(tmp_path) == config


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_label_maps_are_derived_from_each_other(labels: list[str]) -> None:
    id2label = dict(enumerate(labels))
    config = ErnieMConfig(id2label=id2label)
    assert config.num_labels == len(labels) and config.id2label == id2label
    assert all(config.id2label[i] == label for label, i in config.label2id.items())
    assert config.label2id.keys() == set(labels)
    if len(set(labels)) == len(labels):
        assert ErnieMConfig(label2id=config.label2id) == config
    assert ErnieMConfig.from_dict(json.loads(config.to_json())) == config
    more = config.replace(num_labels=len(labels) + 1)
    assert list(more.id2label) == list(range(len(labels) + 1)) and len(more.label2id) == len(labels) + 1
    assert config.replace(num_labels=len(labels)).id2label == id2label


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "id2label: expected the keys 0 to 2 \\(num_labels = 3\\)"),
        ({"id2label": {0: "a", 2: "b"}}, r"id2label: expected the keys 0 to 1 \(num_labels = 2\), got \[0, 2\]"),
        ({"id2label": {0: 5}}, "id2label: expected a string for 0, got 5"),
        ({"id2label": {"0": "a"}}, "id2label: key: expected an integer from 0 to .*, got '0'"),
        ({"id2label": ["a"]}, r"id2label: expected a mapping, got \['a'\]"),
        ({"id2label": {}}, "num_labels: expected an integer from 1 to .*, got 0"),
        ({"label2id": ["a"]}, r"label2id: expected a mapping, got \['a'\]"),
        ({"id2label": {0: "a"}, "label2id": {"b": 0}}, r"label2id: expected the inverse of id2label, \{'a': 0\}, got"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, "label2id: expected the inverse of id2label"),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": True}}, "label2id: expected an integer"),
        ({"pruned_heads": {12: [0]}}, "pruned_heads: layer: expected an integer from 0 to 11, got 12"),
        ({"pruned_heads": {0: [12]}}, "pruned_heads: layer 0: expected an integer from 0 to 11, got 12"),
        ({"pruned_heads": {0: "0"}}, "pruned_heads: expected a list of heads for layer 0, got '0'"),
        ({"pruned_heads": {0: range(12)}}, "pruned_heads: layer 0: expected one head to remain, got all 12 pruned"),
        ({"pruned_heads": [0]}, r"pruned_heads: expected a mapping, got \[0\]"),
        ({"architectures": "ErnieMModel"}, "architectures: expected a list of names, got 'ErnieMModel'"),
        ({"architectures": [1]}, r"architectures: expected a list of names, got \[1\]"),
        ({"extra": {"hidden_size": 1}}, "extra: expected names that are not fields, got 'hidden_size'"),
        ({"extra": {"dropout": 1}}, "extra: expected names that are not fields, got 'dropout'"),
        ({"extra": {"x": object()}}, "extra: expected values that can be written as JSON"),
        ({"extra": {"x": math.nan}}, "extra: expected values that can be written as JSON, got nan for 'x'"),
        ({"extra": {"x": [{"y": -math.inf}]}}, "extra: expected values that can be written as JSON, got .* for 'x'"),
        ({"extra": {"x": {1: 2, "1": 3}}}, "extra: .* for 'x': expected each name once, got '1' twice"),
        ({"extra": [1]}, r"extra: expected a mapping, got \[1\]"),
    ],
)
def test_inconsistent_maps_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ErnieMConfig(**fields)


def test_pruned_heads_are_sorted_without_empty_layers() -> None:
    assert ErnieMConfig(pruned_heads={3: [5, 1, 1], 0: [], 1: (2,)}).pruned_heads == {1: (2,), 3: (1, 5)}


def test_replace_changes_a_copy() -> None:
    config = ErnieMConfig(id2label={0: "no", 1: "yes"}, extra={"x": 1})
    other = config.replace(hidden_size=24, num_attention_heads=3)
    assert (config.hidden_size, other.hidden_size, other.head_dim) == (768, 24, 8)
    assert other.id2label == config.id2label and other.extra == {"x": 1}
    assert config.replace(id2label={0: "a"}).num_labels == 1
    with pytest.raises(TypeError, match=r"^hiden_size: not a field of ErnieMConfig; expected one of vocab_size, "):
        config.replace(hiden_size=1)
    config.use_cache = True  # type: ignore[misc]
    assert config.use_cache is False
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"hidden_size: cannot be assigned: .*; replace\(field="):
        config.hidden_size = 3  # type: ignore[misc]


def test_from_dict_keeps_unknown_keys_and_to_dict_writes_them() -> None:
    values = {"type_vocab_size": 16, "paddlenlp_version": None, "nested": {"a": [1, 2]}, "hidden_size": 24}
    config = ErnieMConfig.from_dict({**values, "num_attention_heads": 3, "model_type": "ernie_m"})
    assert config.extra == {key: values[key] for key in ("type_vocab_size", "paddlenlp_version", "nested")}
    written = config.to_dict()
    assert values.items() <= written.items() and written["model_type"] == "ernie_m"
    assert ErnieMConfig.from_dict(written) == config


def test_from_dict_lets_id2label_override_conflicting_fields() -> None:
    """As in transformers. Red if the file's `num_labels` or `label2id` reach the checks."""
    config = ErnieMConfig.from_dict({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 7, "label2id": {"x": 0}})
    assert config.num_labels == 3 and config.label2id == {"a": 0, "b": 1, "c": 2}


def nested(depth: int) -> dict[str, Any]:
    return {"init_args": [nested(depth - 1)] if depth else []}


def test_from_dict_accepts_any_class_of_the_right_model_type() -> None:
    config = ErnieMConfig.from_dict({"model_type": "ernie_m", "architectures": ["MyErnie"]})
    assert config.architectures == ("MyErnie",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "^model_type: expected 'ernie_m', got 'bert'$"),
        ({"model_type": None}, "^model_type: expected 'ernie_m', got None$"),
        ({"architectures": ["BertModel"]}, "^architectures: expected a class of ERNIE-M, got 'BertModel'$"),
        ({"id2label": {"zero": "a"}}, "^id2label: expected integer keys, got 'zero'$"),
        ({"init_class": "BertModel"}, "^init_class: expected one of ErnieMModel, .*UIEM, got 'BertModel'$"),
        ({"init_args": 3}, "^init_args: expected a list, got 3$"),
        (nested(6), "^init_args: expected at most an encoder inside a head, got deeper nesting$"),
        ({"init_args": list(range(11))}, "^init_args: expected at most 10 arguments for ErnieMModel, got 11$"),
    ],
)
def test_from_dict_refuses_other_models(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ErnieMConfig.from_dict(values)


ENCODER = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "relu"}


@pytest.mark.parametrize(
    "inner",
    [
        {"init_args": [{"init_class": "ErnieMModel", **ENCODER}], "num_classes": 5},
        {"init_args": [{"init_class": "ErnieMModel", "init_args": list(ENCODER.values())}, 5]},
        {"ernie_m": {"init_class": "ErnieMModel", **ENCODER}, "num_classes": 5},
        {"init_args": [{"init_args": [120, 32], "init_class": "ErnieMModel", **ENCODER}], "num_classes": 5},
        {"init_args": [{"init_class": "ErnieMModel", **ENCODER, "num_classes": 7}], "num_classes": 5},
    ],
    ids=["keyword", "positional", "encoder by name", "both", "outer overrides inner"],
)
def test_from_pretrained_reads_paddles_older_record(inner: dict[str, Any], tmp_path: Path) -> None:
    record = {**inner, "init_class": "ErnieMForTokenClassification", "dropout": 0.3}
    (tmp_path / "model_config.json").write_text(json.dumps(record))
    config = ErnieMConfig.from_pretrained(tmp_path)
    assert ENCODER.items() <= dataclasses.asdict(config).items()
    assert config.num_labels == 5 and config.classifier_dropout == 0.3 and config.intermediate_size == 4 * 32
    assert config.architectures == ("ErnieMForTokenClassification",) and not config.extra


def test_from_pretrained_of_paddle_has_intermediate_size_4_times_hidden_size(fixtures: Path, tmp_path: Path) -> None:
    """Paddle builds its encoder so, whatever the file says: the large model's file has the base model's 3072."""
    source = fixtures / "paddle_tiny" / "model"
    values = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "intermediate_size": 3072}))
    assert ErnieMConfig.from_pretrained(tmp_path).intermediate_size == 3072
    shutil.copy(source / "model_state.pdparams", tmp_path)
    assert ErnieMConfig.from_pretrained(tmp_path).intermediate_size == 128
    # Safetensors weights take precedence over Paddle's.
    (tmp_path / "model.safetensors").touch()
    assert ErnieMConfig.from_pretrained(tmp_path).intermediate_size == 3072


@pytest.mark.parametrize("name", ["model", "seqcls", "tokcls", "qa", "mc", "uiem"])
def test_from_pretrained_of_paddle_fixtures(name: str, fixtures: Path) -> None:
    config = ErnieMConfig.from_pretrained(fixtures / "paddle_tiny" / name)
    assert (config.hidden_size, config.vocab_size, config.max_length, config.pad_token_id) == (32, 120, 64, 1)
    assert config.num_labels == {"seqcls": 3, "tokcls": 5}.get(name, 2) and config.default_mask == "pad_token"
    assert config.extra["type_vocab_size"] == 16


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states", "return_dict"])
def test_a_default_of_calls_in_a_file_is_kept_and_its_reader_told(name: str, tmp_path: Path) -> None:
    usual = name == "return_dict"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (usual, None):
            ErnieMConfig.from_dict({name: value})
    (tmp_path / "config.json").write_text(json.dumps({name: not usual}))
    with pytest.warns(UserWarning, match=f"{name}={not usual} in a configuration has no effect: pass it in the call"):
        config = ErnieMConfig.from_pretrained(tmp_path)
    assert config.to_dict()[name] is not usual


def test_from_pretrained_names_the_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a checkpoint: found neither config\.json nor model_config\.json"):
        ErnieMConfig.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        ErnieMConfig.from_pretrained(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="expected a checkpoint directory, got a file"):
        ErnieMConfig.from_pretrained(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        ErnieMConfig.from_json_file(tmp_path / "none.json")


@given(st.dictionaries(st.integers(-(10**20), 10**20) | st.integers(0, 3), st.text(), max_size=3), st.data())
def test_keys_of_labels_are_read_as_they_are_written(labels: dict[int, str], data: st.DataObject) -> None:
    """Another spelling of an integer is refused: two spellings of one would be one label. Seen red with `int(key)`."""
    spellings = ("{}", "0{}", " {}", "{} ", "+{}", "{}_0", "{}.0", "٣", "³", "")
    keys = {data.draw(st.sampled_from(spellings)).format(i): label for i, label in labels.items()}
    plain = {str(i): label for i, label in labels.items()}
    try:
        config = ErnieMConfig.from_dict({"id2label": keys})
    except ValueError as error:
        assert keys != plain or sorted(labels) != list(range(len(labels))) or not labels, error
    else:
        assert {str(i): label for i, label in config.id2label.items()} == keys == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id2label": {"0": "a", "00": "b"}}', "id2label: expected integer keys, got '00'"),
        ('{"id2label": {"0": "a", "0": "b"}}', "expected each name once, got '0' twice"),
        ('{"hidden_size": 24, "hidden_size": 48}', "expected each name once, got 'hidden_size' twice"),
        ('{"x": {"y": [{"z": 1, "z": 1}]}}', "expected each name once, got 'z' twice"),
        ('{"x": NaN}', "extra: expected values that can be written as JSON, got nan for 'x'"),
        ('{"x": 1e400}', "extra: expected values that can be written as JSON, got inf for 'x'"),
        ('{"layer_norm_eps": 1e300}', r"layer_norm_eps: expected a number from 1e-30 to 1, got 1e\+300"),
        ('{"layer_norm_eps": NaN}', "layer_norm_eps: expected a number from 1e-30 to 1, got nan"),
        ('{"hidden_dropout_prob": NaN}', r"hidden_dropout_prob: expected a number in \[0, 1\), got nan"),
        ('{"initializer_range": Infinity}', "initializer_range: expected a number from 0 to 1000, got inf"),
        ('{"pruned_heads": {"0": [1], " 0": [2]}}', "pruned_heads: expected integer keys, got ' 0'"),
        ('{"num_hidden_layers": true}', "num_hidden_layers: expected an integer from 0 to 10000, got True"),
        ('{"label2id": {"a": 0, "b": 0}}', "label2id: expected the inverse of id2label"),
        ('{"label2id": {"a": false}}', "id2label: key: expected an integer"),
    ],
)
def test_values_that_would_be_lost_or_cannot_be_used_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        ErnieMConfig.from_json_file(path)


def test_two_keys_of_one_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^id2label: expected each key once, got 0 twice$"):
        ErnieMConfig.from_dict({"id2label": {"0": "a", 0: "b"}})


known_fields = st.sampled_from(
    [*FIELDS, "model_type", "init_class", "init_args", "ernie_m", "dropout", "num_classes", "x"]
)
labels_like = st.dictionaries(st.integers(-1, 3).map(str) | st.text(), json_values, max_size=3)
values_like = json_values | st.integers(-1, 5) | labels_like | st.sampled_from(["ernie_m", "ErnieMModel", "UIEM"])
records = st.recursive(
    st.dictionaries(known_fields, values_like, max_size=4),
    lambda inner: st.dictionaries(known_fields, inner | st.lists(inner | values_like, max_size=3), max_size=4),
    max_leaves=6,
)


@given(records)
def test_from_json_file_of_any_record(tmp_path_factory: Any, record: dict[str, Any]) -> None:
    """Returns a configuration that survives a round trip, or raises a ValueError that names the file."""
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_text(json.dumps(record))
    try:
        config = ErnieMConfig.from_json_file(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        again = ErnieMConfig.from_dict(json.loads(config.to_json()))
        assert config.to_json() == again.to_json()
        json.loads(config.to_json(), parse_constant=pytest.fail)  # nan and infinity, which JSON does not have


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_from_json_file_of_any_bytes(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_bytes(data)
    try:
        ErnieMConfig.from_json_file(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"hidden_size": 1' + b"0" * 5000 + b"}", b"\xff", b"", b"[]"])
def test_from_json_file_of_hostile_bytes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
        ErnieMConfig.from_json_file(path)


def test_from_json_file_of_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"config\.json: expected at most 67,108,864 bytes, got more"):
        ErnieMConfig.from_json_file(path)


def test_to_dict_needs_a_named_activation() -> None:
    with pytest.raises(ValueError, match=r"^hidden_act: expected a name \(functions cannot be saved\), got <"):
        ErnieMConfig(hidden_act=np.tanh).to_dict()


def test_save_pretrained_creates_directories_only_on_success(tmp_path: Path) -> None:
    ErnieMConfig(hidden_size=24).save_pretrained(tmp_path / "new" / "folder")
    assert ErnieMConfig.from_pretrained(tmp_path / "new" / "folder").hidden_size == 24
    with pytest.raises(ValueError, match="hidden_act"):
        ErnieMConfig(hidden_act=np.tanh).save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()
