"""Queries, keys and values from one matrix product: three projections with their weights stored back to back.

One parameter holds all three. Files and `state_dict()` name them separately, as q_proj, k_proj and v_proj. In the
`state_dict()` these are views of the parameter, so a change to either shows in both.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter

NAMES = ("q_proj", "k_proj", "v_proj")
PARAMETERS = ("weight", "bias")


class FusedQKV(Module):
    """`weight` (3, H·D, E) and `bias` (3, H·D); in a state_dict, `q_proj.weight` (H·D, E) and so on."""

    weight: Parameter
    bias: Parameter

    def __init__(
        self, heads: int, head_size: int, hidden: int, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.head_size = head_size
        self.weight = Parameter(torch.empty(3, heads * head_size, hidden, device=device, dtype=dtype))
        self.bias = Parameter(torch.empty(3, heads * head_size, device=device, dtype=dtype))

    def forward(self, x: Tensor, first: int = 0, last: int = 3) -> Tensor:  # (..., E) -> (..., n, H, D)
        """Project to queries (0), keys (1) and values (2): only the n = `last` - `first` of them from `first` on."""
        weight, bias = self.weight[first:last].flatten(0, 1), self.bias[first:last].flatten()
        return F.linear(x, weight, bias).unflatten(-1, (last - first, -1, self.head_size))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for i, part in enumerate(NAMES):
            for name in PARAMETERS:
                parameter = getattr(self, name)
                destination[f"{prefix}{part}.{name}"] = (parameter if keep_vars else parameter.detach())[i]

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load each part as a separate module, with torch's own checks and messages, into a view of the whole."""
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        parts = []
        for i, part in enumerate(NAMES):
            view = Module()
            for name in PARAMETERS:
                view.register_parameter(name, Parameter(getattr(self, name).detach()[i]))
            rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
            view._load_from_state_dict(state_dict, f"{prefix}{part}.", *rest)
            parts.append(view)
        if strict:
            inside = [key for key in state_dict if key.startswith(prefix)]
            unexpected_keys += [key for key in inside if key[len(prefix) :].partition(".")[0] not in NAMES]
        if local_metadata.get("assign_to_params_buffers", False):
            self._assign(parts, prefix, error_msgs)

    def _assign(self, parts: list[Module], prefix: str, error_msgs: list[str]) -> None:
        """`load_state_dict(assign=True)`: stack the loaded parts, keeping their dtype and device."""
        for name in PARAMETERS:
            found = [getattr(part, name).detach() for part in parts]
            kinds = {(x.dtype, x.device) for x in found}
            if len(kinds) > 1:
                described = ", ".join(f"{part} {x.dtype} on {x.device}" for part, x in zip(NAMES, found, strict=True))
                error_msgs.append(f"{prefix}*.{name}: expected one dtype and device for all three, got {described}")
                continue
            requires_grad = getattr(self, name).requires_grad
            setattr(self, name, Parameter(torch.stack(found), requires_grad=requires_grad))
