"""May a module's weights be used without calling the module?

Fused operations read the weights of Linear, LayerNorm and Embedding modules directly. That is right only while the
module is exactly what this package made. Whatever people put around or in place of one (hooks, adapters, pruning,
quantised or offloaded layers, a subclass) has to run, so such a module is called.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Embedding, LayerNorm, Linear, Module
from torch.nn.modules import module as torch_module

# Names absent from an unmodified module's `__dict__`; pruning and FSDP put tensors there.
_REPLACEABLE = ("forward", "weight", "bias")
# Profilers replace these for all modules of a class.
_FORWARDS: dict[type[Module], Any] = {kind: kind.forward for kind in (Linear, LayerNorm, Embedding)}


def untouched(module: Module, kind: type[Module], x: Tensor | None = None) -> bool:
    """Whether `module` is a plain `kind` without hooks, with its own `forward` and parameters.

    With `x`, its weight must also have the dtype and device of `x`, as fused operations need, and its bias must exist.
    """
    if type(module) is not kind or _has_hooks(module):
        return False
    # One by one: torch.compile of torch 2.11 cannot trace the keys of a `__dict__`.
    if any(name in module.__dict__ for name in _REPLACEABLE):
        return False
    if kind.forward is not _FORWARDS.get(kind, kind.forward):
        return False
    # `module.compile()` stores a compiled call next to `forward`.
    if module._compiled_call_impl is not None or getattr(module, "max_norm", None) is not None:
        return False
    if x is None:
        return True
    weight = module.weight
    with_bias = getattr(module, "bias", weight) is not None
    return isinstance(weight, Tensor) and weight.dtype == x.dtype and weight.device == x.device and with_bias


def all_untouched(root: Module, kinds: tuple[type[Module], ...]) -> bool:
    """Whether `root` and every module in it are untouched, each as one of `kinds`."""
    return all(any(untouched(module, kind) for kind in kinds) for module in root.modules())


def _has_hooks(module: Module) -> bool:
    """Whether calling `module` would run hooks, its own or global ones."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
