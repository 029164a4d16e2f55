"""What the six model classes share: loading and exporting weights.

`state_dict()` and `load_state_dict()` use Hugging Face's names. The reference's loader reads files, and weights can be
copied to and from the reference's class of the same name.

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
    """A torch module with a configuration and a `twin`, the reference class of the same name.

    validate: whether to check values (ids in range, masks of 0 and 1, targets) on a GPU too, which synchronises at each
        call. On a CPU they are always checked; in a graph that is being compiled, never.
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
        """A model in `eval()` mode, newly initialised as by the reference's `from_config` with that seed."""
        return cls.from_reference(cls.twin.from_config(config, seed=seed), dtype=dtype, device=device)

    @classmethod
    def from_reference(cls: type[Model], model: Any, dtype: torch.dtype | None = None, device: Any = None) -> Model:
        """A model in `eval()` mode with the weights of a reference model of the same class, by default in its dtype.

        Raises TypeError for another class, or for a dtype other than float16, bfloat16, float32 and float64.
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
        """Read a Hugging Face or a Paddle checkpoint directory into a model in `eval()` mode.

        dtype: by default the file's, with half precision as float32. device: by default torch's default device.
        strict, seed, changes: as in the reference's `from_pretrained`; with `strict=False`, return a pair, the model
            and the report.

        Raises the same errors as the reference.
        """
        numpy_dtype = None if dtype is None else NUMPY_TYPES.get(float_dtype(dtype), np.float32)
        config = ErnieMConfig.from_pretrained(directory).replace(**changes)
        head, pooler = cls.twin.head_sizes(config), cls.twin.has_pooler
        arrays, report = load_parameters(directory, config, head, pooler, dtype=numpy_dtype, strict=strict, seed=seed)
        model = cls._of_arrays(config, arrays, dtype, device)
        return model if strict else (model, report)

    @classmethod
    def _of_arrays(
        cls: type[Model], config: ErnieMConfig, arrays: dict[str, Array], dtype: torch.dtype | None, device: Any
    ) -> Model:
        """A model with these weights, by path. Empties `arrays`, so that two full copies never exist."""
        dtype = TORCH_TYPES[np.result_type(*arrays.values())] if dtype is None else float_dtype(dtype)
        build: Any = cls
        model: Model = build(config, device="meta", dtype=dtype).to_empty(device=device or torch.get_default_device())
        state = model.state_dict()
        prefix = PREFIX if cls.twin.head_sizes(config) else ""
        with torch.no_grad(), warnings.catch_warnings():
            # Arrays that are views of a file are read-only, and are only read here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            while arrays:
                path, array = arrays.popitem()
                state[file_name(path, HUGGINGFACE, prefix)].copy_(torch.from_numpy(array))
        return model.eval()

    def to_reference(self) -> Any:
        """A reference model of the same class, with copies of the weights; bfloat16, which NumPy lacks, as float32.

        `to_reference().save_pretrained(directory)` writes a checkpoint.
        """
        arrays = from_huggingface({name: to_numpy(tensor) for name, tensor in self.state_dict().items()})
        return self.twin(self.config, unflatten(arrays))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the outputs."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self) -> int:
        """The total number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def float_dtype(dtype: Any) -> torch.dtype:
    """Return `dtype`; raise TypeError unless a model can have it."""
    allowed = (*TRITON_TYPES, torch.float64)
    if dtype not in allowed:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, allowed))}, got {dtype!r}")
    checked: torch.dtype = dtype
    return checked


@torch.no_grad()
def initialise(module: Module, config: ErnieMConfig) -> None:
    """Draw weights from torch's generator, distributed as in `reference.parameters.initialise`."""
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
