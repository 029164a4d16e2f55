"""What the heads share: the encoder below, the pooler, dropout, and logits at padding.

Twin: reference/heads/head.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear

from ernie_m.reference.config import ErnieMConfig
from ernie_m.reference.inputs import ARGUMENTS, check_options

from .dropout import draw_seeds, dropout_unchecked
from .dropping import HEAD, real_tokens
from .encoded import Encoded
from .inputs import check_inputs
from .layouts import Padded
from .model import CALL_OPTIONS, ErnieMModel
from .pretrained import PretrainedModel, initialise
from .runtime.arguments import check_count
from .runtime.dispatch import should_validate
from .runtime.modules import untouched
from .trace import record


def padded_logit(dtype: torch.dtype) -> float:
    """The logit at padding: low enough never to be picked, high enough that the sum of two stays finite."""
    return torch.finfo(dtype).min / 4


class Head(PretrainedModel):
    """`ernie_m` and the linear maps that `twin` names. A call takes the `options` of `ErnieMModel.forward`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.forward.__doc__ is None:
            cls.forward.__doc__ = cls.twin.__call__.__doc__

    def __init__(self, config: ErnieMConfig, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        self.ernie_m = ErnieMModel(config, device, dtype, add_pooling_layer=self.twin.has_pooler, name="ernie_m.")
        for name, outputs in self.twin.head_sizes(config).items():
            setattr(self, name, Linear(config.hidden_size, outputs, device=device, dtype=dtype))
            initialise(getattr(self, name), config)

    def _validates(self, x: Tensor) -> bool:
        return should_validate(x, self.validate)

    def _encode(self, given: tuple[Tensor | None, ...], options: dict[str, Any], first_only: bool = False) -> Encoded:
        """Run the encoder on the positional arguments and the options of a call.

        If something was put around `ernie_m`, or it was replaced, it is called as a module.
        """
        base, call = self.ernie_m, dict(zip(ARGUMENTS, given, strict=False)) | options
        named = {name: x for name, x in call.items() if name not in ARGUMENTS}
        check_options(type(self).__name__, named, CALL_OPTIONS)
        drops = self.training and self._rate > 0.0
        if untouched(base, ErnieMModel):
            return base.encode(**call, first_only=first_only, validate=self.validate, head_drops=drops)
        out = base(**{**call, "return_dict": True})
        like, (ids, mask, positions, _, vectors) = out.last_hidden_state, (call.get(name) for name in ARGUMENTS)
        validate = should_validate(like, self.validate)
        valid = check_inputs(self.config, like, ids, mask, positions, vectors, validate).valid
        everywhere = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        layout = Padded(valid, None, plain=True)
        valid = everywhere if valid is None else valid
        # It draws seeds of its own, unless they are given, and the head one more.
        seeds = named.get("dropout_seeds")
        if seeds is None and drops:
            seeds = draw_seeds(0, like.device)
        offset = check_count("first_token", named.get("first_token", 0))
        return Encoded(layout, valid, like, None, out.hidden_states, out.attentions, out.pooler_output, seeds, offset)

    @property
    def _rate(self) -> float:
        """The head's dropout rate."""
        p = self.config.classifier_dropout
        return self.config.hidden_dropout_prob if p is None else p

    def _drop(self, x: Tensor, encoded: Encoded) -> Tensor:  # (B, E) or (B, S, E)
        """Dropout before the head's linear map."""
        if not self.training or self._rate == 0.0:
            return x
        assert encoded.seeds is not None
        tokens = real_tokens(encoded.valid, encoded.offset)
        if x.dim() == 2:
            columns = encoded.valid.to(torch.uint8).argmax(dim=1)
            tokens = tokens.gather(1, columns[:, None])[:, 0]
        return dropout_unchecked(x, self._rate, encoded.seeds[HEAD], tokens)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        logits = getattr(self, name)(x)
        assert isinstance(logits, Tensor)
        return logits

    def _pooled_logits(self, encoded: Encoded) -> Tensor:  # -> (B, C)
        pooled = encoded.pooled
        if pooled is None:
            assert self.ernie_m.pooler is not None
            pooled = self.ernie_m.pooler(encoded.first_token())
        return record("classifier", self._linear("classifier", self._drop(pooled, encoded)))

    def _span_logits(self, name: str, encoded: Encoded) -> Tensor:  # -> (B, S, outputs)
        """The logits of each token; `padded_logit` at padding."""
        assert encoded.hidden is not None
        logits = record(name, self._linear(name, encoded.hidden), encoded.layout)
        logits = encoded.layout.on_rectangle(logits)
        return logits.masked_fill(~encoded.valid[..., None], padded_logit(logits.dtype))
