"""The learning rate over time: a linear rise, then a linear fall to 0.

At first the running means of AdamW are poor estimates, and in a post-norm Transformer the gradients of the last layers
are large; small steps until both have settled keep training from diverging.

Source: Attention Is All You Need (Vaswani et al., 2017), section 5.3, for the warm-up; BERT (Devlin et al., 2018),
appendix A.2, for the linear fall. Twin: transformers' `get_linear_schedule_with_warmup`.
"""

from __future__ import annotations


def warmup_then_linear(step: int, warmup: int, total: int) -> float:
    """The factor, from 0 to 1, of the learning rate at step 0, 1, ... of `total`, the first `warmup` of them rising.

    Raises ValueError unless 0 <= warmup <= total and step >= 0.
    """
    if not (0 <= warmup <= total and step >= 0):
        raise ValueError(f"schedule: expected 0 <= warmup <= total and step >= 0, got {warmup=}, {total=}, {step=}")
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))
