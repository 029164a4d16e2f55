"""Sampling: `sp_model_kwargs={"enable_sampling": True, ...}` draws a segmentation instead of the most probable one.

    nbest_size   draw from this many of the most probable segmentations, 2 to 512 (default 64), or from all (-1)
    alpha        with probability proportional to p^alpha (default 0.1)

sentencepiece draws from one generator per thread, which all tokenizers share, and seeds it from the system. A forked
process inherits its parent's generator, so that a data loader's workers all draw the same. Seed each of them, for
example in `worker_init_fn`, with a number of its own from 0 to 2^32 - 2:

    sentencepiece.set_random_generator_seed(seed)

Before sentencepiece 0.2.3 this affects only threads that have not drawn yet. Since 0.2.2, a process mixes in a random
number of its own, so that a seed gives the same draws again only in the same process, and in those that it forks after
it has set a seed.

Source: Subword Regularization (Kudo, 2018); SentencePiece 0.2.3 `util.cc`, `SetRandomGeneratorSeed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .options import boolean

OPTIONS = ("enable_sampling", "nbest_size", "alpha")
# The largest number that sentencepiece's float32 holds, rounded down.
LARGEST_ALPHA = 3.4028e38


def sampling_options(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Validate `sp_model_kwargs` and return the arguments of `encode` that it stands for."""
    if not isinstance(sampling, Mapping):
        raise TypeError(f"sp_model_kwargs: expected a mapping, got {sampling!r}")
    unknown = [name for name in sampling if name not in OPTIONS]
    if unknown:
        raise TypeError(f"sp_model_kwargs: expected {', '.join(OPTIONS)}, got {', '.join(map(repr, unknown))}")
    enabled = boolean("sp_model_kwargs: enable_sampling", sampling.get("enable_sampling", False))
    best, alpha = sampling.get("nbest_size", 64), sampling.get("alpha", 0.1)
    if isinstance(best, bool) or not isinstance(best, int):
        raise TypeError(f"sp_model_kwargs: nbest_size: expected an integer, got {best!r}")
    if enabled and not (best == -1 or 2 <= best <= 512):
        raise ValueError(f"sp_model_kwargs: nbest_size: expected -1 or 2 to 512, got {best!r}")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise TypeError(f"sp_model_kwargs: alpha: expected a number, got {alpha!r}")
    if not 0 <= alpha <= LARGEST_ALPHA:
        raise ValueError(f"sp_model_kwargs: alpha: expected 0 to {LARGEST_ALPHA:g}, got {alpha!r}")
    if not enabled:
        return {}
    return {"enable_sampling": True, "nbest_size": best, "alpha": float(alpha)}
