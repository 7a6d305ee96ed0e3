"""Mean flow: learn the average velocity over an interval, then cross it in one step (arXiv 2505.13447).

A velocity is right only for an infinitesimal step. Mean flow learns the displacement over a whole interval of time
instead, divided by its length; one evaluation then carries noise to data. The average obeys an identity that
contains only the instantaneous velocity and a derivative of the network itself, so it can be trained without ever
integrating.

The derivation, with t = 0 noise and t = 1 data. Let x_s follow dx/ds = v(x_s, s), and let r ≥ t be a later time:

    (r − t) u(x_t, t, r) = ∫_t^r v(x_s, s) ds = x_r − x_t      definition: a step from t to r is x_r = x_t + (r − t) u

Differentiate by t along the trajectory, with r fixed. The integral loses its lower end, the left side is a product:

    −u + (r − t) du/dt = −v(x_t, t)    ⇒    u = v + (r − t) du/dt          du/dt = ∂_x u · v + ∂_t u

(The paper runs time the other way, hence its minus sign.) The total derivative is one Jacobian-vector product with
the tangents v, 1 and 0 for x, t and r. The right side is the target, as a constant; v is replaced by the
conditional x1 − x0, as in flow matching:

    loss = E ‖u(x_t, t, r) − stopgrad(x1 − x0 + (r − t) du/dt)‖²

For r = t the derivative drops out and this is flow matching, so u(x, t, t) is the instantaneous velocity.

Shapes: x0, x1, x_t (B, ...), t and r (B,), labels (B,) long.
"""

import torch
from torch import Tensor

from minimal.flows.flow_matching import FlowMatching
from minimal.nn.labels import drop_labels


class MeanFlow(FlowMatching):
    """Flow matching with a second time. A share `flow_share` of each batch has r = t."""

    num_times = 2
    flow_share = 0.75

    def average_velocity(self, x: Tensor, t: Tensor, r: Tensor, cond: Tensor | None = None) -> Tensor:
        """u(x, t, r): the mean of the velocity from time t (B,) to time r (B,), starting at x (B, ...)."""
        return self.net(x, t, cond, r - t)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.average_velocity(x, t, t, cond)

    def loss(
        self, x1: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict]:
        """Mean squared violation of the identity over a batch x1 (B, ...) with labels (B,)."""
        self.check(x1, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        t, r = (time.to(x1) for time in self.sample_intervals(len(x1), generator))
        x0 = torch.randn(x1.shape, generator=generator).to(x1)
        x_t, v = self.path.point(x0, x1, t), self.path.velocity(x0, x1, t)
        u, target = self.identity(x_t, v, t, r, cond)
        loss = (u - target).square().mean()
        return loss, {"mse": loss.detach()}

    def identity(self, x: Tensor, v: Tensor, t: Tensor, r: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both sides of the identity: u and, as a constant, v + (r − t) du/dt."""
        tangents = (v, torch.ones_like(t), torch.zeros_like(r))
        u, du_dt = torch.func.jvp(lambda x, t, r: self.average_velocity(x, t, r, cond), (x, t, r), tangents)
        span = (r - t).view(-1, *[1] * (x.dim() - 1))
        return u, (v + span * du_dt).detach()

    def sample_intervals(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Times t ≤ r (n,): two draws in order, or one draw twice."""
        first, second = self.sample_times(n, generator), self.sample_times(n, generator)
        t, r = torch.minimum(first, second), torch.maximum(first, second)
        return t, torch.where(torch.rand(n, generator=generator) < self.flow_share, t, r)
