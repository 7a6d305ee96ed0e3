"""Solvers: one loop over a time grid, and four ways to take a step (for diffusion: EDM, arXiv 2206.00364).

A transport model gives a velocity field; sampling integrates dx/dt = v(x, t) from noise (t = 0) to data (t = 1).
What a solver costs is the number of times it asks for the velocity. A step of order p with k calls leaves an error
of O(hᵖ) after h⁻¹ steps:

    euler     x + h v(x, t)                                   p = 1, k = 1
    midpoint  x + h v(x + h/2 v(x, t), t + h/2)               p = 2, k = 2
    heun      x + h/2 (v(x, t) + v(x + h v(x, t), t + h))     p = 2, k = 2
    rk4       Simpson's rule with two midpoints               p = 4, k = 4

Euler and midpoint never ask at t = 1, heun and rk4 do. The grid may be any increasing or decreasing list of times:
a likelihood runs from data to noise with the same code.

Shapes: x (B, ...); v maps (x, t) with t a number to (B, ...).
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def euler(v: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * v(x, t)


def midpoint(v: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    return x + h * v(x + h / 2 * v(x, t), t + h / 2)


def heun(v: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    k1 = v(x, t)
    k2 = v(x + h * k1, t + h)
    return x + h / 2 * (k1 + k2)


def rk4(v: Velocity, x: Tensor, t: float, h: float) -> Tensor:
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, t + h / 2)
    k3 = v(x + h / 2 * k2, t + h / 2)
    k4 = v(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """num_steps + 1 times from 0 to 1. A shift above 1 puts more of them near the noise (arXiv 2403.03206, eq. 23)."""
    if num_steps < 1 or shift <= 0:
        raise ValueError(f"expected num_steps >= 1 and shift > 0, got {num_steps} and {shift}")
    return [i / (i + shift * (num_steps - i)) for i in range(num_steps + 1)]


def trajectory(v: Velocity, x: Tensor, times: Sequence[float], solver: str = "euler") -> Iterator[Tensor]:
    """The states at all `times`, the first one being x itself."""
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")
    step = SOLVERS[solver]
    yield x
    for t, after in zip(times[:-1], times[1:]):
        x = step(v, x, t, after - t)
        yield x


def integrate(v: Velocity, x: Tensor, times: Sequence[float], solver: str = "euler") -> Tensor:
    """The state at the last of `times`, starting from x at the first."""
    for x in trajectory(v, x, times, solver):
        pass
    return x
