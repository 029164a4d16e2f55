"""Configuration files: where to find them, and the formats of Hugging Face and Paddle.

Paddle's `config.json` is Hugging Face's with a few more keys. Its older `model_config.json` records constructor calls:
keyword arguments by name, positional ones in the list `init_args`, the class in `init_class`. In a model with a head,
the encoder is a nested record of this kind, inside `init_args`, under "ernie_m" or, in early UIEM files, under
"encoding_model".

Source: paddlenlp 2.0 to 2.8, `ernie_m/modeling.py` for the signatures, `configuration_utils.py` for reading old files.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .checks import is_inverse, mapping, short_repr

MODEL_TYPE = "ernie_m"
CONFIG_FILE = "config.json"
PADDLE_CONFIG_FILE = "model_config.json"
INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")

# The positional arguments of Paddle's constructors before it had configuration objects.
PADDLE_ENCODER = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "initializer_range",
    "pad_token_id",
)
PADDLE_SIGNATURES: dict[str, tuple[str, ...]] = {
    "ErnieMModel": PADDLE_ENCODER,
    "ErnieMForSequenceClassification": ("ernie_m", "num_classes", "dropout"),
    "ErnieMForTokenClassification": ("ernie_m", "num_classes", "dropout"),
    "ErnieMForMultipleChoice": ("ernie_m", "num_choices", "dropout"),
    "ErnieMForQuestionAnswering": ("ernie_m",),
    "UIEM": ("ernie_m",),
}
# What heads call the encoder that they are built on.
ENCODER_ARGUMENTS = ("ernie_m", "encoding_model")
ALIASES = {"num_classes": "num_labels", "dropout": "classifier_dropout"}
# Defaults of a call that transformers reads from a file, and their values there if the file has none.
CALL_DEFAULTS = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}


def find(directory: str | PathLike[str]) -> Path:
    """The configuration file of a checkpoint directory. Raises FileNotFoundError if there is none."""
    folder = Path(directory)
    if not folder.is_dir():
        problem = "expected a checkpoint directory, got a file" if folder.exists() else "no such directory"
        raise FileNotFoundError(f"{folder}: {problem}")
    for name in (CONFIG_FILE, PADDLE_CONFIG_FILE):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: not a checkpoint: found neither {CONFIG_FILE} nor {PADDLE_CONFIG_FILE}")


def fields_of(values: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """The content of a file as arguments of `ErnieMConfig`; `known` lists its fields."""
    values = dict(mapping("configuration", values))
    if "init_class" in values or "init_args" in values:
        values = flatten_paddle(values)
    check_model(values)
    for alias, name in ALIASES.items():
        if alias in values:
            value = values.pop(alias)
            if values.get(name) is None and value is not None:
                values[name] = value
    found = {key: value for key, value in values.items() if key in known}
    found["extra"] = {key: value for key, value in values.items() if key not in found and key != "model_type"}
    for name, usual in CALL_DEFAULTS.items():
        value = values.get(name)
        if value is not None and value is not usual:
            message = f"{name}={short_repr(value)} in a configuration has no effect: pass it in the call"
            warnings.warn(message, stacklevel=3)
    for name in ("id2label", "pruned_heads"):
        if found.get(name) is not None:
            found[name] = integer_keys(name, found[name])
    if found.get("id2label") is not None:
        found["num_labels"] = None
        if not is_inverse(found.get("label2id"), found["id2label"]):
            found["label2id"] = None
    if found.get("pruned_heads", ...) is None:
        del found["pruned_heads"]
    return found


def integer_keys(name: str, values: Any) -> dict[Any, Any]:
    """A mapping with its keys as integers: in JSON, keys are always strings.

    Raises ValueError for keys such as "00" and "1_0", which Python reads as integers but `str` does not write.
    """
    found: dict[Any, Any] = {}
    for key, value in mapping(name, values).items():
        if isinstance(key, str) and not INTEGER.fullmatch(key):
            raise ValueError(f"{name}: expected integer keys, got {short_repr(key)}")
        number = int(key) if isinstance(key, str) else key
        if number in found:
            raise ValueError(f"{name}: expected each key once, got {short_repr(key)} twice")
        found[number] = value
    return found


def check_model(values: Mapping[str, Any]) -> None:
    """Raise ValueError if a configuration is for another model."""
    found = values.get("model_type", MODEL_TYPE)
    if found != MODEL_TYPE:
        raise ValueError(f"model_type: expected {MODEL_TYPE!r}, got {short_repr(found)}")
    classes = values.get("architectures")
    if isinstance(classes, list) and "model_type" not in values:
        others = [name for name in classes if not str(name).startswith(("ErnieM", "UIEM"))]
        if others:
            raise ValueError(f"architectures: expected a class of ERNIE-M, got {short_repr(others[0])}")


def flatten_paddle(record: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Flatten Paddle's record of constructor calls; outer values override inner ones."""
    if depth > 4:
        raise ValueError("init_args: expected at most an encoder inside a head, got deeper nesting")
    values = dict(record)
    name = values.pop("init_class", "ErnieMModel")
    arguments = values.pop("init_args", [])
    if not isinstance(arguments, (list, tuple)):
        raise ValueError(f"init_args: expected a list, got {short_repr(arguments)}")
    signature = PADDLE_SIGNATURES.get(name) if isinstance(name, str) else None
    if signature is None:
        raise ValueError(f"init_class: expected one of {', '.join(PADDLE_SIGNATURES)}, got {short_repr(name)}")
    named = (values.pop(key, None) for key in ENCODER_ARGUMENTS)
    inner = [item for item in (*arguments, *named) if isinstance(item, Mapping)]
    scalars = dict(zip(signature, arguments, strict=False))
    if len(arguments) > len(signature) and not all(isinstance(item, Mapping) for item in arguments):
        raise ValueError(f"init_args: expected at most {len(signature)} arguments for {name}, got {len(arguments)}")
    flat = {key: value for key, value in scalars.items() if not isinstance(value, Mapping)}
    flat.update(values)
    for item in inner:
        for key, value in flatten_paddle(item, depth + 1).items():
            flat.setdefault(key, value)
    flat["architectures"] = [name]
    if isinstance(flat.get("hidden_size"), int) and "intermediate_size" not in flat:
        flat["intermediate_size"] = 4 * flat["hidden_size"]
    return flat
