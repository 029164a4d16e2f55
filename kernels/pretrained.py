"""What the six model classes have in common: where weights come from and go to.

`state_dict()` and `load_state_dict()` speak Hugging Face's names; files are read by the reference's loader, and weights
go to and from the reference's classes of the same name.

Twin: reference/pretrained.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Module

from ernie_m.reference.array import Array
from ernie_m.reference.checkpoint import load_parameters
from ernie_m.reference.checkpoint.names import HUGGINGFACE, PREFIX, file_name, from_huggingface
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.parameters import flatten, unflatten

from .runtime.dtypes import TRITON_TYPES
from .trace import to_numpy

NUMPY_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
TORCH_TYPES = {np.dtype(kind): dtype for dtype, kind in NUMPY_TYPES.items()}
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(Module):
    """A torch module with a configuration, and a reference class of the same name as its `twin`.

    validate: whether to check values (ids in range, masks of 0 and 1, targets) on a GPU too, which waits for it at each
        call. On a CPU they always are; in a graph that is being compiled never.
    """

    twin: ClassVar[Any]
    validate: bool = False

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(
        cls: type[Model], config: ErnieMConfig, seed: int = 0, dtype: torch.dtype | None = None, device: Any = None
    ) -> Model:
        """A model in `eval()` with random weights: those of the reference's `from_config` with that seed."""
        return cls.from_reference(cls.twin.from_config(config, seed=seed), dtype=dtype, device=device)

    @classmethod
    def from_reference(cls: type[Model], model: Any, dtype: torch.dtype | None = None, device: Any = None) -> Model:
        """A model in `eval()` with the weights of a reference model of the same class, by default in its dtype.

        Raises TypeError for another class, or for a dtype that is none of torch's floating point types here.
        """
        if not isinstance(model, cls.twin):
            expected = f"ernie_m.reference.{cls.twin.__name__}"
            raise TypeError(f"model: expected {expected}, got {type(model).__module__}.{type(model).__name__}")
        return cls._of_arrays(model.config, flatten(model.parameters), dtype, device)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        directory: str | PathLike[str],
        dtype: torch.dtype | None = None,
        device: Any = None,
        strict: bool = True,
        seed: int = 0,
        **changes: Any,
    ) -> Any:
        """Read a Hugging Face or a Paddle checkpoint directory into a model in `eval()`.

        dtype: by default the file's, half precision as float32. device: by default torch's default device.
        strict, seed, changes: as of the reference's `from_pretrained`; with `strict=False` a pair is returned, the
            model and the report.

        Errors are the reference's too.
        """
        kind = None if dtype is None else NUMPY_TYPES.get(float_dtype(dtype), np.float32)
        config = ErnieMConfig.from_pretrained(directory).replace(**changes)
        head, pooler = cls.twin.head_sizes(config), cls.twin.has_pooler
        arrays, report = load_parameters(directory, config, head, pooler, dtype=kind, strict=strict, seed=seed)
        model = cls._of_arrays(config, arrays, dtype, device)
        return model if strict else (model, report)

    @classmethod
    def _of_arrays(
        cls: type[Model], config: ErnieMConfig, arrays: dict[str, Array], dtype: torch.dtype | None, device: Any
    ) -> Model:
        """A model with these weights, by path. Empties `arrays`, so that there are never two whole copies."""
        dtype = TORCH_TYPES[np.result_type(*arrays.values())] if dtype is None else float_dtype(dtype)
        build: Any = cls
        model: Model = build(config, device="meta", dtype=dtype).to_empty(device=device or torch.get_default_device())
        places = model.state_dict()
        prefix = PREFIX if cls.twin.head_sizes(config) else ""
        with torch.no_grad(), warnings.catch_warnings():
            # Arrays that are views of a file are read-only, and only read.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            while arrays:
                path, array = arrays.popitem()
                places[file_name(path, HUGGINGFACE, prefix)].copy_(torch.from_numpy(array))
        return model.eval()

    def to_reference(self) -> Any:
        """The reference's model of the same class with copies of the weights; bfloat16, which NumPy lacks, as float32.

        `to_reference().save_pretrained(directory)` writes a checkpoint.
        """
        arrays = from_huggingface({name: to_numpy(tensor) for name, tensor in self.state_dict().items()})
        return self.twin(self.config, unflatten(arrays))

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype, which is the outputs' too."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.parameters())


def float_dtype(dtype: Any) -> torch.dtype:
    """`dtype`, or a TypeError unless it is one that a model can have."""
    allowed = (*TRITON_TYPES, torch.float64)
    if dtype not in allowed:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, allowed))}, got {dtype!r}")
    found: torch.dtype = dtype
    return found


@torch.no_grad()
def initialise(module: Module, config: ErnieMConfig) -> None:
    """Random weights from torch's generator, distributed as `reference.parameters.initialise` describes them."""
    for child in module.modules():
        own: Mapping[str, Tensor] = dict(child.named_parameters(recurse=False))
        for name, parameter in own.items():
            if name == "bias":
                parameter.zero_()
            elif isinstance(child, LayerNorm):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range)
        if isinstance(child, Embedding) and child.padding_idx is not None:
            child.weight[child.padding_idx] = 0.0
