"""What the model classes share: a configuration, parameters, loading and saving.

Models are immutable: `astype`, `resize_token_embeddings` and `prune_heads` return a new model, which shares the
unchanged arrays.

Source: the names are those of transformers' `PreTrainedModel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeVar

import numpy as np

from .array import Array
from .checkpoint import load_parameters, read_config, save_checkpoint
from .checkpoint.names import to_huggingface
from .config import ErnieMConfig
from .parameters import Parameters, check_shapes, flatten, initialise, shapes, unflatten

FLOATS = (np.float16, np.float32, np.float64)
Model = TypeVar("Model", bound="PretrainedModel")


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """`dtype` as a NumPy dtype. Raises ValueError unless it is float16, float32 or float64."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in FLOATS:
        raise ValueError(f"dtype: expected float16, float32 or float64, got {dtype!r}")
    return found


class PretrainedModel:
    """A configuration and its parameters.

    `head_sizes(config)` lists the linear maps on top of the encoder, `has_pooler` and `predicts_words` say whether
    there is a pooler, and a masked language model's head; the other parameters are the same in all classes.
    """

    has_pooler = True
    predicts_words = False
    # Whether `inputs.warn_of_mask` has warned.
    warned_of_mask = False

    def __init__(self, config: ErnieMConfig, parameters: Parameters) -> None:
        """Raises ValueError if the paths or shapes of the parameters do not match the configuration."""
        check_shapes(flatten(parameters), self.shapes(config))
        self.config = config
        self.parameters = parameters

    @classmethod
    def head_sizes(cls, config: ErnieMConfig) -> dict[str, int]:
        """Name and number of outputs of each linear map on top of the encoder."""
        return {}

    @classmethod
    def shapes(cls, config: ErnieMConfig) -> dict[str, tuple[int, ...]]:
        """Path and shape of every array, see `parameters.shapes`."""
        return shapes(config, cls.head_sizes(config), cls.has_pooler, cls.predicts_words)

    @classmethod
    def from_config(cls: type[Model], config: ErnieMConfig, seed: int = 0, dtype: Any = np.float32) -> Model:
        """A model with random weights, drawn from the seed (see `parameters.initialise`)."""
        return cls(config, unflatten(initialise(cls.shapes(config), config, seed, float_dtype(dtype))))

    @classmethod
    def from_pretrained(
        cls: type[Model],
        directory: str | PathLike[str],
        dtype: Any = None,
        strict: bool = True,
        seed: int = 0,
        *,
        ignore_mismatched_sizes: bool = False,
        revision: str | None = None,
        **changes: Any,
    ) -> Any:
        """Load a Hugging Face or Paddle checkpoint directory.

        directory, revision: or a repository on the Hugging Face Hub (see `ernie_m.tokenizer.hub`).
        dtype: float16, float32 or float64; by default that of the file, with half precision widened to float32.
        strict: if weights are missing, unexpected or of the wrong shape, raise a ValueError, whose `report` lists them
            all. With `strict=False`, initialise missing and wrongly shaped weights from `seed`, and return a pair: the
            model and a `LoadReport`.
        ignore_mismatched_sizes: initialise only weights of the wrong shape from `seed`, as transformers does.
        changes: configuration fields to override, such as `num_labels=5`.

        A head or pooler that the file lacks is initialised from `seed`, with a note on stderr. Raises FileNotFoundError
        if the directory holds no checkpoint, ValueError if a file is damaged or holds nan or infinity.
        """
        from ernie_m.tokenizer import hub

        wanted = None if dtype is None else float_dtype(dtype)
        directory = hub.directory(directory, revision)
        config = read_config(directory, **changes)
        arrays, report = load_parameters(
            *(directory, config, cls.shapes(config)),
            dtype=wanted,
            strict=strict,
            seed=seed,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        model = cls(config, unflatten(arrays))
        return model if strict else (model, report)

    def save_pretrained(self, directory: str | PathLike[str], overwrite: bool = False) -> None:
        """Write `config.json` and `model.safetensors`, which transformers 4.40.2 can load.

        Beside Paddle's weights and tokenizer also `tokenizer_config.json`, with how texts are cut there. If anything
        fails, the directory is as before. Raises FileExistsError if one of the files exists, unless `overwrite`, or
        cannot be replaced, such as a directory of that name.
        """
        arrays = flatten(self.parameters)
        save_checkpoint(directory, self.config, arrays, type(self).__name__, overwrite=overwrite)

    def state_dict(self) -> dict[str, Array]:
        """All arrays by their names in a Hugging Face checkpoint; not copied."""
        return to_huggingface(flatten(self.parameters))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights and of the outputs."""
        return self.parameters.word_embeddings.dtype

    def num_parameters(self) -> int:
        """The number of scalar parameters."""
        return sum(array.size for array in flatten(self.parameters).values())

    def astype(self: Model, dtype: Any) -> Model:
        """The model with its weights rounded to another dtype."""
        wanted = float_dtype(dtype)
        arrays = {path: array.astype(wanted, copy=False) for path, array in flatten(self.parameters).items()}
        return type(self)(self.config, unflatten(arrays))

    def resize_token_embeddings(self: Model, size: int, seed: int = 0) -> Model:
        """The model with a vocabulary of `size`: rows are cut off, or added and initialised from `seed`."""
        config = self.config.replace(vocab_size=size)
        arrays = flatten(self.parameters)
        if "prediction.bias" in arrays:
            bias = arrays["prediction.bias"][:size]
            arrays["prediction.bias"] = np.concatenate([bias, np.zeros(size - len(bias), bias.dtype)])
        kept = arrays["word_embeddings"][:size]
        rows = {"added": (size - len(kept), config.hidden_size)}
        # No new row needs to be 0: the padding token is always in the old vocabulary.
        added = initialise(rows, config, seed, self.dtype)["added"]
        arrays["word_embeddings"] = np.concatenate([kept, added])
        return type(self)(config, unflatten(arrays))

    def prune_heads(self: Model, heads: Mapping[int, Iterable[int]]) -> Model:
        """The model without the attention heads in {layer: [heads]}, numbered as in the unpruned model.

        Equivalent to masking these heads, but cheaper. Heads that are already pruned may be listed again. Raises
        ValueError if a layer or head does not exist, or if a layer would have no heads left.
        """
        earlier, config = self.config.pruned_heads, self.config.prune(heads)
        arrays = flatten(self.parameters)
        D = config.hidden_size // config.num_attention_heads
        for i in heads:
            present = [h for h in range(config.num_attention_heads) if h not in earlier.get(i, ())]
            lost = config.pruned_heads.get(i, ())
            kept = np.concatenate([np.arange(D) + D * j for j, h in enumerate(present) if h not in lost])
            for name in ("q_proj", "k_proj", "v_proj"):
                arrays[f"layers.{i}.{name}.weight"] = arrays[f"layers.{i}.{name}.weight"][kept]
                arrays[f"layers.{i}.{name}.bias"] = arrays[f"layers.{i}.{name}.bias"][kept]
            arrays[f"layers.{i}.out_proj.weight"] = arrays[f"layers.{i}.out_proj.weight"][:, kept]
        return type(self)(config, unflatten(arrays))
