"""Arrays of more than 2³¹ numbers that take almost no memory.

The system provides the memory of an array of zeros page by page, when it is first used. A kernel in the interpreter of
which only a few programs run touches a few pages; an operation of torch on the whole array would touch them all, and is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..runtime.dtypes import TORCH_DTYPES

# Larger arrays are virtual.
VIRTUAL = 2**26
# Random numbers at both ends of a virtual array, in rows.
ENDS = 128


class NotTried(Exception):
    """A case cannot be tried with this function on this machine; says why."""


def virtual(dtype: str, shape: tuple[int, ...]) -> Any:
    """Random numbers; of a huge array only both ends, and the rest is zeros that take no memory until they are read.

    Raises NotTried if the system does not even promise the memory.
    """
    rng = np.random.default_rng(len(shape))
    if math.prod(shape) <= VIRTUAL:
        return rng.standard_normal(shape)
    try:
        zeros = np.zeros(shape, np.int32 if dtype == "float32" else np.int16)
    except MemoryError as error:
        raise NotTried(str(error)) from error
    found = torch.from_numpy(zeros).view(TORCH_DTYPES[dtype])
    for end in (slice(None, ENDS), slice(-ENDS, None)):
        found[end] = torch.from_numpy(rng.standard_normal(found[end].shape)).to(found.dtype)
    return found


class OnlyKernels(TorchDispatchMode):
    """Inside, torch may look at virtual arrays and allocate more of them, but not read or write all their numbers.

    Operations that others have registered are let through: they launch the kernels.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if "copy_" in str(func) and args[0].data_ptr() == args[1].data_ptr():
            # After a launch, the interpreter copies each array to where it already is.
            return args[0]
        harmless = func.is_view or any(word in str(func) for word in ("empty", "set_"))
        if func.namespace == "aten" and not harmless:
            sizes = [arg.numel() for arg in args if isinstance(arg, torch.Tensor)]
            sizes += [
                math.prod(arg) for arg in args if isinstance(arg, (list, tuple)) and all(type(n) is int for n in arg)
            ]
            if max(sizes, default=0) > VIRTUAL:
                raise NotTried(f"it calls {func} on a whole array")
        return func(*args, **(kwargs or {}))
