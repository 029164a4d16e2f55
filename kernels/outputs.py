"""What a call returns: the reference's classes, registered with torch as pytrees.

With that, `torch.export`, `torch.func` and whatever else works on pytrees accept them.

Twin: reference/outputs.py.
"""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from ernie_m.reference.outputs import (
    ClassifierOutput,
    InformationExtractionOutput,
    MaskedLMOutput,
    ModelOutput,
    Output,
    QuestionAnsweringOutput,
)

__all__ = [
    "ClassifierOutput",
    "InformationExtractionOutput",
    "MaskedLMOutput",
    "ModelOutput",
    "QuestionAnsweringOutput",
]


def _register(cls: type[Output[Any]]) -> None:
    def flatten(output: Output[Any]) -> tuple[list[Any], list[str]]:
        return list(output.values()), list(output)

    def flatten_with_keys(output: Output[Any]) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
        return [(pytree.MappingKey(name), value) for name, value in output.items()], list(output)

    def unflatten(values: Any, names: Any) -> Output[Any]:
        return cls(**dict(zip(names, values, strict=True)))

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"{cls.__module__}.{cls.__name__}",
    )


for _output in (
    ModelOutput,
    ClassifierOutput,
    MaskedLMOutput,
    QuestionAnsweringOutput,
    InformationExtractionOutput,
):
    _register(_output)
