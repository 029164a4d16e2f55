"""What all tasks of a head share: a model, its tokenizer, and the head's outputs for any number of rows of tokens.

Equal rows are computed once, and rows are sorted by length and by their ids before they are batched. So outputs depend
only on which rows there are: not on their order, and not on how often each is given, bit for bit. Rows in other
batches, because of another `batch_size` or of other rows, change by rounding alone.

Masks follow the checkpoint (`training.rows.visible`), and padding has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, ClassVar, TypeVar

import numpy as np

from ernie_m.tokenizer import ErnieMTokenizer, hub

from ..array import Array
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.names import CLASSES, architecture_of
from ..checkpoint.reading import compare_names
from ..config import ErnieMConfig
from ..groups import batches
from ..heads import ErnieMForMultipleChoice
from ..model import ErnieMModel
from ..padding import pad_ids
from ..training.rows import RowEncoder, visible
from .arguments import at_least_one, finite
from .backends import NUMPY, check_backend, load

# Those fields of an output that are numbers for each row.
FIELDS = ("logits", "start_logits", "end_logits")
Self = TypeVar("Self", bound="Task")


class Task:
    """A model with a head, and its tokenizer.

    model: of the class `head`, of `ernie_m.reference` or of `ernie_m.kernels`; a torch model in `eval()` mode.
    batch_size: the maximum number of rows in one call of the model; by default as many as have `groups.TOKENS` tokens.
    progress: called after each call of the model with the number of rows done, and of all.

    Several threads may use one object. Raises TypeError for any other model,
    ValueError for a model that reads at most eight tokens, or for a `batch_size` below 1.
    """

    head: ClassVar[Any]

    def __init__(
        self,
        model: Any,
        tokenizer: ErnieMTokenizer,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.is_torch = not isinstance(model, self.head)
        if self.is_torch and not issubclass(getattr(type(model), "twin", object), self.head):
            expected = f"an {self.head.__name__} of ernie_m.reference or ernie_m.kernels"
            raise TypeError(f"model: expected {expected}, got {type(model).__module__}.{type(model).__name__}")
        if batch_size is not None:
            at_least_one("batch_size", batch_size)
        if not (progress is None or callable(progress)):
            raise TypeError(f"progress: expected a function of two numbers, or None, got {progress!r:.80}")
        self.model, self.tokenizer, self.batch_size, self.progress = model, tokenizer, batch_size, progress
        self.rows()

    @classmethod
    def from_pretrained(
        cls: type[Self],
        directory: str | PathLike[str],
        backend: str = NUMPY,
        device: str | None = None,
        default_mask: str | None = None,
        *,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load model and tokenizer from a directory, or a repository (see `hub`), in float32, for inference only.

        backend, device: "numpy", or "torch", which needs the extra "kernels" and computes on the CPU by default.
        default_mask: the configuration's, if that should be another one than the checkpoint's own.
        options: further arguments of the class.

        Raises ValueError if the checkpoint is of another head, or has none; otherwise as the `from_pretrained` of model
        and tokenizer.
        """
        check_backend(backend, device)
        directory = hub.directory(directory, revision)
        tokenizer = ErnieMTokenizer.from_pretrained(directory)
        check_head(open_checkpoint(directory), ErnieMConfig.from_pretrained(directory), cls.head)
        changes = {} if default_mask is None else {"default_mask": default_mask}
        return cls(load(directory, backend, device, cls.head, **changes), tokenizer, **options)

    @property
    def config(self) -> ErnieMConfig:
        """The model's configuration."""
        found: ErnieMConfig = self.model.config
        return found

    def rows(self) -> RowEncoder:
        """A maker of rows that the model can read, for one call."""
        return RowEncoder(self.tokenizer, self.config.max_length)

    def outputs(self, rows: Sequence[Sequence[int]]) -> list[dict[str, Array]]:
        """The head's outputs for each row of token ids, special tokens included: those of FIELDS that the head has.

        They are (C,) for a head on whole rows, (1,) for multiple choice, (S, C) or (S,) for one on tokens, in the
        model's dtype, at least float32; equal rows share their arrays. Raises ValueError in `train()` mode, and
        for nan and inf.
        """
        if self.is_torch and self.model.training:
            raise ValueError("model: expected one in eval() mode, got one in train() mode")
        distinct = sorted({tuple(row) for row in rows}, key=lambda row: (len(row), row))
        found: dict[tuple[int, ...], dict[str, Array]] = {}
        for chosen in batches([len(row) for row in distinct], self.batch_size):
            batch = [distinct[j] for j in chosen]
            outputs = self._call(batch)
            for b, row in enumerate(batch):
                # Heads on tokens have an axis that is as long as the longest row.
                on_tokens = {name for name, x in outputs.items() if name != "logits" or x.ndim == 3}
                found[row] = {
                    name: finite(x[b, : len(row)] if name in on_tokens else x[b]).copy() for name, x in outputs.items()
                }
            if self.progress is not None:
                self.progress(len(found), len(distinct))
        return [found[tuple(row)] for row in rows]

    def _call(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:  # B rows -> (B, ...)
        ids, mask = pad_ids(rows, self.config.pad_token_id)
        given = {"input_ids": ids, "attention_mask": visible(self.config, ids, mask)}
        if issubclass(self.head, ErnieMForMultipleChoice):
            given = {name: x[:, None] for name, x in given.items()}
        if not self.is_torch:
            out = self.model(**given)
            return {name: x.astype(np.result_type(x, np.float32), copy=False) for name, x in _fields(out).items()}
        import torch

        device = self.model.device
        with torch.inference_mode():
            out = self.model(**{name: torch.from_numpy(x).to(device) for name, x in given.items()})
            wide = torch.promote_types(self.model.dtype, torch.float32)
            return {name: x.to("cpu", wide).numpy() for name, x in _fields(out).items()}


def _fields(output: Any) -> dict[str, Any]:
    return {name: output[name] for name in FIELDS if name in output}


def check_head(checkpoint: Checkpoint, config: ErnieMConfig, head: Any) -> None:
    """Raise ValueError unless the checkpoint has this head.

    Heads may have tensors of the same names, so the configuration's `architectures` count, if it has any. The model's
    own `from_pretrained` would newly initialise a missing head.
    """
    expected = f"{checkpoint.directory}: expected a checkpoint of {head.__name__}, got"
    found, declared = architecture_of(config, checkpoint.tensors), config.architectures or ()
    if found not in (head.__name__, ErnieMModel.__name__) and CLASSES.keys() & set(declared):
        raise ValueError(f"{expected} config.architectures {list(declared)}")
    _, report = compare_names(checkpoint, head.shapes(config))
    if report.initialised:
        missing = f"without {', '.join(report.initialised)}"
        raise ValueError(f"{expected} one {missing if found == head.__name__ else f'of {found}'}")
