"""Central differences: what a derivative is, computed without knowing one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

STEPS = (1e-3, 1e-4, 1e-5)


def dot(xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> float:
    """Σ x y over all arrays."""
    return float(sum(np.vdot(x, y) for x, y in zip(xs, ys, strict=True)))


def along(
    value: Callable[[list[np.ndarray]], float], at: Sequence[np.ndarray], to: Sequence[np.ndarray]
) -> list[float]:
    """(value(x + hv) − value(x − hv)) / 2h for each of STEPS, with x = `at` and v = `to`."""
    found = []
    for h in STEPS:
        ahead, behind = (value([x + sign * h * v for x, v in zip(at, to, strict=True)]) for sign in (1, -1))
        found.append((ahead - behind) / (2 * h))
    return found


def check_gradients(
    value: Callable[[list[np.ndarray]], float],
    at: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    seed: int,
    names: Sequence[str] = (),
    rtol: float = 1e-6,
    free: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Compare the gradients of `value`, each by itself, along random directions, at the best step.

    The error is relative to the derivative or, where its terms happen to cancel, to the root of the sum of their
    squares. Truncation errs by h² f‴/6, rounding by u |f| / h: at the best of the steps both are far below 1e-6 for
    functions of moderate size. A gradient that is exactly 0 is compared with the rounding of `value`. `free`, by name,
    is 0 where an argument is not varied.
    """
    rng = np.random.default_rng(seed)
    for i, (x, g) in enumerate(zip(at, gradients, strict=True)):
        assert g.shape == x.shape and g.dtype == x.dtype, (names[i] if names else i, g.shape, x.shape)
        if x.size == 0:
            continue
        v = rng.standard_normal(x.shape)
        if free and names[i] in free:
            v = v * free[names[i]]
        to = [v if j == i else np.zeros_like(y) for j, y in enumerate(at)]
        exact, scale = float(np.vdot(g, v)), float(np.sqrt(np.square(g * v).sum()))
        error = min(abs(found - exact) for found in along(value, at, to))
        allowed = rtol * max(abs(exact), scale) + 1e-10 * max(1.0, abs(value(list(at))))
        assert error <= allowed, f"{names[i] if names else i}: off by {error:.2e}, allowed {allowed:.2e}, exact {exact}"
