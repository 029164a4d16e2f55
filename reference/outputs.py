"""The outputs of the models: NumPy arrays here, torch tensors in `ernie_m.kernels`.

Field names and their order are those of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

A = TypeVar("A")  # the type of array


class Output(dict[str, Any], Generic[A]):
    """A frozen record of arrays that is also a dictionary of the fields that are not None, as in transformers.

        out.logits, out["logits"]            a field by name
        out[0], out[:2], out.to_tuple()      the fields that are not None, in order
        keys(), items(), dict(out), len      of these fields; iteration yields their names

    Training loops, `accelerate`, Lightning and torch's DataParallel treat outputs as dictionaries. DataParallel builds
    the gathered one from (name, value) pairs, so a mapping or an iterator of pairs in place of the first field is taken
    for all fields.
    """

    def __post_init__(self) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        first, *others = [getattr(self, name) for name in names]
        if isinstance(first, (dict, Iterator)) and all(value is None for value in others):
            object.__setattr__(self, names[0], None)
            for name, value in dict(first).items():
                if name not in names:
                    raise TypeError(f"{type(self).__name__}: expected the fields {', '.join(names)}, got {name!r}")
                object.__setattr__(self, name, value)
        for name in names:
            value = getattr(self, name)
            if value is not None:
                dict.__setitem__(self, name, value)

    def __getitem__(self, key: Any) -> Any:
        """A field by name, or by its place among those that are not None, or a slice of these."""
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(f"{key}: expected one of {', '.join(self)}")
        return dict.__getitem__(self, key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def __reduce__(self) -> Any:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def _frozen(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{type(self).__name__} is frozen: expected no assignment; `dict(out)` makes a copy to change")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _frozen


@dataclass(frozen=True, eq=False)
class ModelOutput(Output[A]):
    """Output of `ErnieMModel`.

    `last_hidden_state` (B, S, E), or (T, E) for a packed call; `pooler_output` (B, E), None if the model has no pooler;
    `hidden_states`, L + 1 arrays (B, S, E), the embeddings first; `attentions`, L arrays (B, H, S, S). Padded positions
    are 0 in all but `pooler_output`.
    """

    last_hidden_state: A
    pooler_output: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True, eq=False)
class ClassifierOutput(Output[A]):
    """Output of the classification heads: `logits` (B, C), or (B, S, C) for token classification; `loss` a scalar."""

    loss: A | None = None
    logits: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True, eq=False)
class MaskedLMOutput(Output[A]):
    """Output of the masked language model: `logits` (B, S, V) of a call without labels, `loss` of one with them."""

    loss: A | None = None
    logits: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True, eq=False)
class QuestionAnsweringOutput(Output[A]):
    """`start_logits` and `end_logits` (B, S), for the start and end of the answer."""

    loss: A | None = None
    start_logits: A | None = None
    end_logits: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


@dataclass(frozen=True, eq=False)
class InformationExtractionOutput(Output[A]):
    """`start_logits`, `end_logits` (B, S), and their sigmoids `start_prob`, `end_prob`: for any number of spans."""

    loss: A | None = None
    start_logits: A | None = None
    end_logits: A | None = None
    start_prob: A | None = None
    end_prob: A | None = None
    hidden_states: tuple[A, ...] | None = None
    attentions: tuple[A, ...] | None = None


def returned(output: Any, options: dict[str, Any]) -> Any:
    """What a call returns: the output, or if `return_dict` is false its fields that are not None, as a tuple."""
    wanted = options.get("return_dict")
    return output if wanted is None or wanted else output.to_tuple()
