"""The path between noise and data, and four views of one regression (arXiv 2011.13456, 2210.02747, 2209.03003).

A path mixes a noise sample x0 with a data sample x1; time runs from noise (t = 0) to data (t = 1). Given a point
x_t of the path, a network may name the data, the noise, the velocity or the score. All four are one conditional
expectation in other coordinates, so each follows from any other by a linear formula.

    x_t = α x1 + σ x0            the point; here α = t and σ = 1 − t, a straight line
    v   = α̇ x1 + σ̇ x0            velocity, the time derivative of the point; here x1 − x0
    s   = −x0 / σ                score, ∇ log p_t(x_t)

Every view is thus a pair of coefficients (a, b) with view = a x1 + b x0. The point and one view are two equations
in the two unknowns x1 and x0; solving them gives every conversion at once. On the straight line x1 = x_t + (1 − t)
v and x0 = x_t − t v, finite at both ends; data from noise divides by t, and the score by 1 − t, so each of these is
lost at one end.

Shapes: points and views (B, ...), times (B,) or a number.
"""

import torch
from torch import Tensor

VIEWS = ("data", "noise", "velocity", "score")


def expand(t: Tensor | float, x: Tensor) -> Tensor:
    """Times (B,) as (B, 1, ..., 1), to be multiplied with x (B, ...)."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    return t.reshape(-1, *[1] * (x.dim() - 1))


class Path:
    """The straight line. Another path is a subclass with its own `coefficients`."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """α, σ and their time derivatives α̇, σ̇ at t."""
        return t, 1 - t, torch.ones_like(t), -torch.ones_like(t)

    def point(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """x_t, the line that fixes the direction of time for the whole package."""
        alpha, sigma, _, _ = self.coefficients(expand(t, x1))
        return alpha * x1 + sigma * x0

    def velocity(self, x0: Tensor, x1: Tensor, t: Tensor | float) -> Tensor:
        """The time derivative of the point while x0 and x1 stay fixed: the target of flow matching."""
        _, _, alpha_dot, sigma_dot = self.coefficients(expand(t, x1))
        return alpha_dot * x1 + sigma_dot * x0

    def convert(self, value: Tensor, x_t: Tensor, t: Tensor | float, source: str, target: str) -> Tensor:
        """The view `target` of the point x_t at t, given the view `source`; both are names in VIEWS."""
        for view in (source, target):
            if view not in VIEWS:
                raise ValueError(f"unknown view {view!r}; choose from {', '.join(VIEWS)}")
        t = expand(t, x_t)
        alpha, sigma, _, _ = self.coefficients(t)
        a, b = self._view(source, t)
        determinant = alpha * b - sigma * a
        x1 = (b * x_t - sigma * value) / determinant
        x0 = (alpha * value - a * x_t) / determinant
        a, b = self._view(target, t)
        return a * x1 + b * x0

    def _view(self, name: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients (a, b) with which the view is a x1 + b x0."""
        _, sigma, alpha_dot, sigma_dot = self.coefficients(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        velocity, score = (alpha_dot, sigma_dot), (zero, -1 / sigma)
        return {"data": (one, zero), "noise": (zero, one), "velocity": velocity, "score": score}[name]
