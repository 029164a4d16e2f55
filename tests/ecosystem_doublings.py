"""Ways to double the output of one module of a model, and the model that has twice the weights in its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from ecosystem_helpers import (
    small,
)
from torch import Tensor
from torch.nn import Module
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_map


def double(value: Any) -> Any:
    """All floating-point tensors in it times 2."""
    return tree_map(lambda x: 2 * x if isinstance(x, Tensor) and x.is_floating_point() else x, value)


class Wrapped(Module):
    """A module that has nothing in common with the one in it but what it computes."""

    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return double(self.inner(*args, **kwargs))


def replace(model: Module, name: str, module: Module) -> None:
    """Put `module` in the place of that name."""
    owner, _, own = name.rpartition(".")
    setattr(model.get_submodule(owner), own, module)


def by_hook(model: Module, name: str) -> None:
    model.get_submodule(name).register_forward_hook(lambda module, args, output: double(output))


def by_hook_with_kwargs(model: Module, name: str) -> None:
    model.get_submodule(name).register_forward_hook(
        lambda module, args, kwargs, output: double(output), with_kwargs=True, always_call=True
    )


def by_global_hook(model: Module, name: str) -> None:
    own = model.get_submodule(name)
    torch_module.register_module_forward_hook(lambda module, args, output: double(output) if module is own else None)


def by_wrapper(model: Module, name: str) -> None:
    replace(model, name, Wrapped(model.get_submodule(name)))


def by_instance_forward(model: Module, name: str) -> None:
    """What `accelerate` does to attach its hooks."""
    module: Any = model.get_submodule(name)
    forward = module.forward
    module.forward = lambda *args, **kwargs: double(forward(*args, **kwargs))


def by_subclass(model: Module, name: str) -> None:
    module = model.get_submodule(name)
    kind = type(module)
    forward = kind.forward
    own = type("Doubling", (kind,), {"forward": lambda self, *args, **kwargs: double(forward(self, *args, **kwargs))})
    other = copy.deepcopy(module)
    other.__class__ = own
    replace(model, name, other)


def by_compiled_call(model: Module, name: str) -> None:
    """`module.compile()` puts a call in place of the module's own."""
    module: Any = model.get_submodule(name)
    module._compiled_call_impl = lambda *args, **kwargs: double(module._call_impl(*args, **kwargs))


DOUBLINGS: dict[str, Callable[[Module, str], None]] = {
    "forward hook": by_hook,
    "forward hook with kwargs": by_hook_with_kwargs,
    "global forward hook": by_global_hook,
    "wrapper": by_wrapper,
    "instance's forward": by_instance_forward,
    "subclass": by_subclass,
    "compiled call": by_compiled_call,
}


def doubled(name: str) -> Any:
    """A model whose module `name` has twice the weights, so that its output is doubled."""
    model = small()
    with torch.no_grad():
        for x in model.get_submodule(name).parameters():
            x.mul_(2)
    return model
