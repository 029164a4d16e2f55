"""Computing layers again in the backward pass, so that their intermediates need not be kept: what libraries call.

Source: transformers 4.40.2 and 5.24, `PreTrainedModel` and `Trainer`, for the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import Module

from .surgery import base_of


class Recomputing:
    """The methods of a model, `self`, with an encoder whose layers can be computed again."""

    supports_gradient_checkpointing = True
    get_input_embeddings: Any
    _input_hook: Any = None

    def enable_input_require_grads(self) -> None:
        """Make word vectors require gradients, which reentrant checkpointing of a frozen model with adapters needs."""
        self.disable_input_require_grads()
        self._input_hook = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        if self._input_hook is not None:
            self._input_hook.remove()
        self._input_hook = None

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """While training, recompute layers in the backward pass; kwargs are those of torch's `checkpoint`."""
        chosen = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        base_of(self).encoder.gradient_checkpointing = chosen

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The same, by transformers 5's name. Raises ValueError for only some layers, or for offloading."""
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers: expected 1, as every layer is computed again, got {every_n_layers!r}")
        if offload:
            raise ValueError(f"offload: expected False, as nothing is offloaded, got {offload!r}")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the intermediates of layers again."""
        base_of(self).encoder.gradient_checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return base_of(self).encoder.gradient_checkpointing is not None

    # By transformers 5's names.
    activation_checkpointing_disable = gradient_checkpointing_disable
    is_activation_checkpointing = is_gradient_checkpointing


def _require_grad(module: Module, arguments: Any, vectors: Tensor) -> None:
    vectors.requires_grad_(True)
