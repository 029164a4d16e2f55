"""What the model classes share: loading, saving and exporting weights.

`state_dict()` and `load_state_dict()` use Hugging Face's names. The reference's loader and writer read and write files,
and weights can be copied to and from the reference's class of the same name. `surgery` changes the vocabulary and the
heads.

Twin: reference/pretrained.py. Source: transformers 4.40.2, `PreTrainedModel`, for the names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import Embedding, LayerNorm, Module

from ernie_m.reference.array import Array
from ernie_m.reference.checkpoint import load_parameters, read_config, save_checkpoint
from ernie_m.reference.checkpoint.names import HUGGINGFACE, ON_TOP, PREFIX, file_name, from_huggingface
from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.parameters import flatten, unflatten

from . import surgery
from .recomputing import Recomputing
from .runtime.dtypes import chosen_dtype, float_dtype
from .runtime.foreign import check_complete, check_config, check_saved, local_directory, one_device, refuse_foreign
from .trace import to_numpy

NUMPY_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
TORCH_TYPES = {np.dtype(kind): dtype for dtype, kind in NUMPY_TYPES.items()}
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(Recomputing, Module):
    """A torch module with a configuration and a `twin`, the reference class of the same name.

    validate: whether to check values (ids in range, masks of 0 and 1, targets) on a GPU too, which synchronises at each
        call. On a CPU they are always checked; in a graph that is being compiled, never.
    """

    twin: ClassVar[Any]
    validate: bool = False
    # Whether `inputs.warn_of_mask` has warned or, on a GPU, has looked.
    warned_of_mask: bool = False
    base_model_prefix = "ernie_m"
    main_input_name = "input_ids"
    # Its losses take no num_items_in_batch, which transformers' Trainer passes to others.
    accepts_loss_kwargs = False
    _no_split_modules: ClassVar[list[str]] = ["Embeddings", "EncoderLayer"]

    def __init__(self, config: ErnieMConfig) -> None:
        super().__init__()
        check_config(config)
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
        dtype: torch.dtype | str | None = None,
        device: Any = None,
        strict: bool = True,
        seed: int = 0,
        *,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        low_cpu_mem_usage: bool = True,
        ignore_mismatched_sizes: bool = False,
        revision: str | None = None,
        **changes: Any,
    ) -> Any:
        """Read a checkpoint directory, or a repository (see `ernie_m.tokenizer.hub`), into a model in `eval()` mode.

        dtype, torch_dtype: a torch dtype or its name; by default, or "auto", the file's, half precision as float32.
        device, device_map: one device; by default torch's default device.
        strict, seed, changes: as in the reference's `from_pretrained`; with `strict=False`, return a pair, the model
            and the report. ignore_mismatched_sizes: newly initialise weights of another shape.
        low_cpu_mem_usage: ignored, as files are always memory-mapped. Raises the same errors as the reference.
        """
        if not isinstance(low_cpu_mem_usage, bool):
            raise TypeError(f"low_cpu_mem_usage: expected True or False, got {low_cpu_mem_usage!r}")
        directory = local_directory(directory, revision, changes)
        dtype, device = chosen_dtype(dtype, torch_dtype), one_device(device, device_map)
        numpy_dtype = None if dtype is None else NUMPY_TYPES.get(dtype, np.float32)
        config = read_config(directory, **changes)
        arrays, report = load_parameters(
            *(directory, config, cls.twin.shapes(config)),
            dtype=numpy_dtype,
            strict=strict,
            seed=seed,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
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
        prefix = PREFIX if any(path.startswith(ON_TOP) for path in arrays) else ""
        with torch.no_grad(), warnings.catch_warnings():
            # Arrays that are views of a file are read-only, and are only read here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            while arrays:
                path, array = arrays.popitem()
                state[file_name(path, HUGGINGFACE, prefix)].copy_(torch.from_numpy(array))
        return model.eval()

    def to_reference(self) -> Any:
        """A reference model of the same class, with copies of the weights; bfloat16, which NumPy lacks, as float32."""
        return self.twin(self.config, unflatten(_arrays_of(self.state_dict())))

    def save_pretrained(
        self,
        directory: str | PathLike[str],
        overwrite: bool = False,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **unsupported: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors`, which transformers 4.40.2 and the reference can load.

        Beside Paddle's weights and tokenizer also `tokenizer_config.json`. If anything fails, the directory is as
        before. `state_dict`: weights to write instead of the model's, such as those gathered from shards; with
        `is_main_process=False` nothing is written. Raises FileExistsError as the reference's does.
        """
        refuse_foreign("save_pretrained", unsupported)
        if unsupported:
            raise TypeError(f"save_pretrained: unexpected argument {next(iter(unsupported))!r}")
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        arrays = _arrays_of(state)
        half = all(tensor.dtype == torch.bfloat16 for tensor in state.values())
        check_complete(arrays, self.twin.shapes(self.config), surgery.base_of(self).pooler is not None)
        save_checkpoint(directory, self.config, arrays, type(self).__name__, overwrite=overwrite, bfloat16=half)

    @property
    def base_model(self) -> Module:
        """The encoder: `ernie_m` of a head, or the model itself."""
        base = getattr(self, self.base_model_prefix, self)
        assert isinstance(base, Module)
        return base

    def get_output_embeddings(self) -> None:
        """None: the head that predicts words multiplies by the input embeddings. Libraries of adapters ask."""

    def get_input_embeddings(self) -> Module:
        """The module that maps ids to word vectors."""
        return surgery.base_of(self).embeddings.word_embeddings

    def set_input_embeddings(self, value: Module) -> None:
        """Replace that module; an Embedding of another size changes `config.vocab_size` too."""
        surgery.set_embeddings(self, value)

    def resize_token_embeddings(self, size: int | None = None, pad_to_multiple_of: int | None = None) -> Module:
        """Change the vocabulary to `size` rows, in place, and return the module with the word vectors.

        Rows are dropped from the end or added there, newly initialised from torch's generator. pad_to_multiple_of:
        round the size up. Without a size nothing changes.
        """
        return surgery.resize_vocabulary(self, size, pad_to_multiple_of)

    def prune_heads(self, heads: Mapping[int, Iterable[int]]) -> None:
        """Remove the attention heads in {layer: [heads]}, in place, numbered as before any pruning.

        Equivalent to masking these heads, but cheaper. Heads that are already pruned may be named again. Raises
        ValueError for a layer or head that does not exist, or if a layer would be left without heads.
        """
        surgery.prune_heads(self, heads)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the outputs."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The total number of weights, or of those that require gradients, or of those in no table of embeddings."""
        tables = {id(x) for part in self.modules() if isinstance(part, Embedding) for x in part.parameters()}
        wanted = (x for x in self.parameters() if not (exclude_embeddings and id(x) in tables))
        return sum(x.numel() for x in wanted if x.requires_grad or not only_trainable)


def _arrays_of(state: Mapping[str, Tensor]) -> dict[str, Array]:
    return from_huggingface({name: to_numpy(tensor) for name, tensor in check_saved(state).items()})


@torch.no_grad()
def initialise(module: Module, config: ErnieMConfig) -> None:
    """Draw weights from torch's generator, distributed as in `reference.parameters.initialise`."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(child, LayerNorm):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range)
        if isinstance(child, Embedding) and child.padding_idx is not None:
            child.weight[child.padding_idx] = 0.0
