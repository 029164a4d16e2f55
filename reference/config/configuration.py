"""The configuration of a model: every size and option, validated on construction.

    max_length = max_position_embeddings - 2     rows 0 and 1 of the position table are never used
    head_dim   = hidden_size / num_attention_heads

Fields and defaults are those of transformers 4.40.2; its configuration files can be read and written. `default_mask`
is an addition: what to mask when a call passes no mask (see `inputs`).

Leaves out: decoding, relative positions, and other options that no ERNIE-M checkpoint can use; such keys of a file are
kept in `extra` and written back.

Source: transformers 4.40.2, `configuration_ernie_m.py` and `configuration_utils.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from ..activations import ACTIVATIONS
from . import checks as check
from . import files as config_files


@dataclass(frozen=True)
class ErnieMConfig:
    """Sizes and options of a model; the defaults are those of the base model.

    hidden_act: a name, as in transformers, or a function of an array.
    classifier_dropout, act_dropout: None means `hidden_dropout_prob`.
    num_labels, id2label, label2id: any of them is enough; two labels by default.
    problem_type: the loss of sequence classification; None infers it from the labels.
    default_mask: what to mask when a call passes no mask: every `pad_token_id` ("pad_token"), or every id 0
        ("cls_token"), as in Paddle and in the training of its extraction checkpoints (UIE-M).
    pruned_heads: {layer: pruned heads}, numbered as in the unpruned model.
    extra: keys of a configuration file that this package does not use.

    Raises TypeError or ValueError with the field, the value, and what is allowed.
    """

    vocab_size: int = 250002
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[[Any], Any] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514
    initializer_range: float = 0.02
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5
    classifier_dropout: float | None = None
    act_dropout: float | None = 0.0
    # These three are never None after construction.
    num_labels: int = None  # type: ignore[assignment]
    id2label: Mapping[int, str] = None  # type: ignore[assignment]
    label2id: Mapping[str, int] = None  # type: ignore[assignment]
    problem_type: str | None = None
    default_mask: str = "pad_token"
    pruned_heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    architectures: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)

    def _checked(self) -> dict[str, Any]:
        """All validated fields that may need converting, as plain Python values."""
        sizes = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
        found: dict[str, Any] = {
            name: check.integer(name, getattr(self, name), 1, check.LARGEST_SIZE) for name in sizes
        }
        E, H = found["hidden_size"], found["num_attention_heads"]
        if E % H:
            raise ValueError(f"num_attention_heads: expected a divisor of hidden_size = {E}, got {H}")
        layers = check.integer("num_hidden_layers", self.num_hidden_layers, 0, check.MOST_LAYERS)
        found["num_hidden_layers"] = layers
        found["max_position_embeddings"] = check.integer(
            "max_position_embeddings", self.max_position_embeddings, 3, check.LARGEST_SIZE
        )
        found["pad_token_id"] = check.integer("pad_token_id", self.pad_token_id, 0, found["vocab_size"] - 1)
        for name in ("layer_norm_eps", "initializer_range"):
            found[name] = check.number(name, getattr(self, name))
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "act_dropout"):
            value = getattr(self, name)
            optional = name in ("classifier_dropout", "act_dropout")
            found[name] = None if optional and value is None else check.number(name, value)
        if not callable(self.hidden_act):
            check.one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        check.one_of("problem_type", self.problem_type, (None, *check.PROBLEM_TYPES))
        check.one_of("default_mask", self.default_mask, check.DEFAULT_MASKS)
        found["num_labels"], found["id2label"], found["label2id"] = check.labels(
            self.num_labels, self.id2label, self.label2id
        )
        found["pruned_heads"] = check.pruned_heads(self.pruned_heads, layers, H)
        found["architectures"] = check.names("architectures", self.architectures)
        found["extra"] = check.extra(self.extra, (*FIELDS, *config_files.ALIASES, "model_type"))
        return found

    @property
    def head_dim(self) -> int:
        """Size of one attention head, D."""
        return self.hidden_size // self.num_attention_heads

    @property
    def activation_dropout(self) -> float:
        """The dropout rate after the activation: `act_dropout`, or `hidden_dropout_prob` if that is None."""
        return self.hidden_dropout_prob if self.act_dropout is None else self.act_dropout

    @property
    def max_length(self) -> int:
        """The longest sequence, in tokens, that fits the position table."""
        return self.max_position_embeddings - 2

    @property
    def model_type(self) -> str:
        """Which model this configures, in transformers' words."""
        return config_files.MODEL_TYPE

    @property
    def use_return_dict(self) -> bool:
        """True: outputs are dictionaries. peft's classes by task ask."""
        return True

    @property
    def use_cache(self) -> bool:
        """False: an encoder has no cache. transformers 5's Trainer assigns it, which changes nothing."""
        return False

    def replace(self, **changes: Any) -> ErnieMConfig:
        """A copy with some fields changed.

        If one of `num_labels`, `id2label` and `label2id` changes, those not given are derived from it. Raises TypeError
        for an unknown field.
        """
        unknown = sorted(changes.keys() - {*FIELDS, "extra"})
        if unknown:
            raise TypeError(f"{unknown[0]}: not a field of ErnieMConfig; expected one of {', '.join(FIELDS)}")
        label_fields = ("num_labels", "id2label", "label2id")
        if changes.get("num_labels", self.num_labels) != self.num_labels or {"id2label", "label2id"} & changes.keys():
            changes = {**dict.fromkeys(label_fields), **changes}
        return dataclasses.replace(self, **changes)

    def prune(self, heads: Mapping[int, Iterable[int]]) -> ErnieMConfig:
        """A copy without the heads in {layer: [heads]} either, numbered as in the unpruned model.

        Raises TypeError or ValueError, naming the layer or head, if one does not exist or a layer would have none left.
        """
        added, earlier = check.pruned_heads(heads, self.num_hidden_layers, self.num_attention_heads), self.pruned_heads
        return self.replace(pruned_heads={i: (*earlier.get(i, ()), *added.get(i, ())) for i in {*earlier, *added}})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErnieMConfig:
        """From the content of a Hugging Face or Paddle configuration file; unknown keys go to `extra`.

        As in transformers, `id2label` overrides a conflicting `num_labels` or `label2id`. Raises ValueError for another
        model's file.
        """
        return cls(**config_files.fields_of(values, FIELDS))

    @classmethod
    def from_json_file(cls, path: str | PathLike[str]) -> ErnieMConfig:
        """Read one configuration file. Raises FileNotFoundError or ValueError, naming the file."""
        from ernie_m.tokenizer.files import read_json

        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], *, revision: str | None = None) -> ErnieMConfig:
        """Read `config.json`, or Paddle's older `model_config.json`, from a checkpoint directory.

        directory, revision: or a repository on the Hugging Face Hub (see `ernie_m.tokenizer.hub`).

        Raises FileNotFoundError if neither exists; ValueError, naming the file, if it is damaged.
        """
        from ernie_m.tokenizer import hub
        from ernie_m.tokenizer.files import is_paddle

        directory = hub.directory(directory, revision, weights=False)
        config = cls.from_json_file(config_files.find(directory))
        # Paddle's intermediate size is always 4 times the hidden size. Paddle writes `intermediate_size` to its files
        # but never reads it: the large model's file says 3072, although its weights have 4096.
        if is_paddle(directory):
            return config.replace(intermediate_size=4 * config.hidden_size)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The content of a Hugging Face `config.json`, in JSON types; `from_dict` reads it back.

        Raises ValueError if `hidden_act` is a function, which cannot be saved.
        """
        if not isinstance(self.hidden_act, str):
            raise ValueError(
                f"hidden_act: expected a name (functions cannot be saved), got {check.short_repr(self.hidden_act)}"
            )
        values = {**self.extra, **{name: getattr(self, name) for name in FIELDS}}
        values["model_type"] = config_files.MODEL_TYPE
        values["architectures"] = None if self.architectures is None else list(self.architectures)
        values["id2label"] = {str(i): label for i, label in self.id2label.items()}
        values["label2id"] = dict(self.label2id)
        values["pruned_heads"] = {str(layer): list(heads) for layer, heads in self.pruned_heads.items()}
        # transformers derives it from `id2label`, and warns if both are given.
        del values["num_labels"]
        return values

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"

    # The name that callbacks of transformers' Trainer know.
    to_json_string = to_json

    def save_pretrained(self, directory: str | PathLike[str]) -> None:
        """Write `config.json` to a directory, which is created if needed; an existing file is replaced."""
        from ernie_m.tokenizer.files import path_of
        from ernie_m.tokenizer.new_files import directory as created
        from ernie_m.tokenizer.new_files import replacing

        folder, text = path_of(directory), self.to_json()
        with created(folder), replacing(folder / config_files.CONFIG_FILE) as (file,):
            file.write(text.encode("utf-8"))


FIELDS = tuple(item.name for item in dataclasses.fields(ErnieMConfig) if item.name != "extra")


def _assign(config: ErnieMConfig, name: str, value: Any) -> None:
    """Refuse `config.name = value`, except for `use_cache`."""
    if name != "use_cache":
        advice = "a configuration does not change; replace(field=value) returns a changed copy"
        raise dataclasses.FrozenInstanceError(f"{name}: cannot be assigned: {advice}")


# A frozen dataclass may not define it itself.
ErnieMConfig.__setattr__ = _assign  # type: ignore[method-assign, assignment]
