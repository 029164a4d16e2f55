"""What rounding may do on any processor: the bounds that tests share.

Two correct computations of the same thing may differ: libraries add in different orders, fuse products into sums, and
round exp and its relatives differently. Tests therefore compare within a bound that is counted in units of the unit
roundoff u. They ask for equal bits only where the same operations run on the same data, or where every step is exact.
"""

from __future__ import annotations

import math

import numpy as np

U32, U64 = 2.0**-24, 2.0**-53

# exp, log, log1p, tanh, erf: NumPy's own tests allow its functions up to 4 units in the last place, each at most 2 u.
LIBM = 8

# Two ways through a small float64 model (`helpers.SMALL`, `torch_models.SMALL`), absolute, for numbers of size 1 to 10.
# The longest path has some 900 roundings: about 400 for each of two layers (sums of 16 to 40 numbers in the products,
# of up to 73 in softmax and context, two normalisations), 100 for embeddings and pooler. Changing every weight by a
# relative ε, with random signs, changes the output by up to 25 ε. 2 · 900 · 25 u = 5e-12.
MODEL_BOUND = 1e-11


def attention_bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, u: float = U64) -> float:  # (..., S, D) x 3
    """How far apart two computations of attention with unit roundoff `u` may be, whatever the order of their sums.

    With M the largest Σ|q||k|/√D, a score is off by at most (D + 2) u M; an exponential, relatively, by twice that, by
    2 u M for subtracting the maximum, and by LIBM u; a probability by twice as much and (S + 1) u; the context by S u
    more, relative to the largest value. Twice, for two computations.
    """
    S, D = k.shape[-2:]
    if q.size == 0 or S == 0:
        return 0.0
    largest = float((np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max()) / math.sqrt(D)
    exponential = 2 * (D + 2) * largest + 2 * largest + LIBM
    return 2 * u * (2 * exponential + 2 * S + 1) * float(np.abs(v).max())
