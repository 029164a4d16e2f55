"""Training, in NumPy: the optimiser, its schedule, and the loop.

Read in this order: `adamw`, `clipping`, `schedules`, `layerwise`, `loop`. Gradients come from
`ernie_m.reference.value_and_gradients`. Everything here works on dictionaries of arrays by path, as
`parameters.flatten` gives them.

For the heads there are `records`, `rows`, `spans` and `scores`; `ernie_m.reference.tasks` uses `rows` and `spans` too.
"""

from .adamw import AdamWState, adamw_start, adamw_step, decays
from .clipping import clip_by_global_norm, global_norm
from .layerwise import layer_wise_rates
from .loop import TrainingStep, train
from .schedules import warmup_then_linear

__all__ = [
    "AdamWState",
    "TrainingStep",
    "adamw_start",
    "adamw_step",
    "clip_by_global_norm",
    "decays",
    "global_norm",
    "layer_wise_rates",
    "train",
    "warmup_then_linear",
]
