"""AdamW, with the parameters grouped by learning rate and weight decay as in `ernie_m.reference.training`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW

from ernie_m.reference.checkpoint.names import from_huggingface
from ernie_m.reference.training import decays, layer_wise_rates

from .parallel import inside
from .settings import Settings


def adamw(net: Module, settings: Settings) -> AdamW:
    """AdamW with a group of parameters for each learning rate, with and without weight decay."""
    model = inside(net)
    parameters = dict(model.named_parameters())
    # A table of paths: the names stand in for arrays.
    names: dict[str, Any] = from_huggingface({name: name for name in parameters})
    rates = layer_wise_rates(names, settings.rate, settings.layer_decay, model.config.num_hidden_layers)
    groups: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
    for path, name in names.items():
        if parameters[name].requires_grad:
            key = rates[path], settings.weight_decay if decays(path) else 0.0
            groups[key].append(parameters[name])
    if not groups:
        raise ValueError("model: expected parameters that require gradients, got none")
    entries = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    return AdamW(entries, lr=settings.rate, betas=settings.betas, eps=settings.eps, fused=True)
