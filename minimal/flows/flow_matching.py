"""Flow matching: regress the velocity from noise to data, then follow it (arXiv 2210.02747, 2209.03003).

Join every noise sample to every data sample by a straight line. Many lines cross at a point x_t, each with its own
velocity x1 − x0; the least-squares regression learns their mean. Following the mean field moves the whole noise
distribution onto the data distribution, although no single line is followed.

    x_t = t x1 + (1 − t) x0,    loss = E ‖v(x_t, t, c) − (x1 − x0)‖²,    minimiser v = E[x1 − x0 | x_t, c]

The marginal velocity itself is unknown, but regressing on the conditional one has the same gradient (theorem 2 of
the paper). Times are drawn from a logit-normal distribution, more often from the middle of the path where the
regression is hard (SD3, arXiv 2403.03206). A tenth of the labels is replaced by the null class, so that the same
network knows the unconditional field for guidance.

Shapes: x0, x1, x_t (B, ...), t (B,), labels (B,) long.
"""

import torch
from torch import Tensor, nn

from minimal.flows.path import Path
from minimal.flows.velocity_net import VelocityNet
from minimal.nn.labels import check_labels, drop_labels
from minimal.nn.module import arguments


class FlowMatching(nn.Module):
    """A transport model of examples of one `shape`; `logit_normal` is (mean, deviation), None for uniform times."""

    num_times = 1

    def __init__(
        self,
        shape: tuple[int, ...] = (1, 8, 8),
        num_classes: int = 0,
        width: int = 184,
        depth: int = 4,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
        logit_normal: tuple[float, float] | None = (0.0, 1.0),
        net: nn.Module | None = None,
    ):
        super().__init__()
        self.config = arguments(locals())
        self.shape, self.num_classes = tuple(shape), num_classes
        self.label_dropout, self.logit_normal = label_dropout, logit_normal
        self.path = Path()
        self.net = net or VelocityNet(shape, num_classes, width, depth, dropout=dropout, num_times=self.num_times)

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """dx/dt at x (B, ...) and t (B,); without labels that of the null class."""
        return self.net(x, t, cond)

    def loss(
        self, x1: Tensor, cond: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict]:
        """Mean squared error of the velocity over a batch x1 (B, ...) with labels (B,)."""
        self.check(x1, cond)
        if self.training:
            cond = drop_labels(cond, self.label_dropout, self.num_classes, generator)
        t = self.sample_times(len(x1), generator).to(x1)
        x0 = torch.randn(x1.shape, generator=generator).to(x1)
        x_t, v = self.path.point(x0, x1, t), self.path.velocity(x0, x1, t)
        loss = (self.velocity(x_t, t, cond) - v).square().mean()
        return loss, {"mse": loss.detach()}

    def sample_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Training times (n,) in [0, 1]."""
        if self.logit_normal is None:
            return torch.rand(n, generator=generator)
        mean, deviation = self.logit_normal
        return (mean + deviation * torch.randn(n, generator=generator)).sigmoid()

    def check(self, x: Tensor, cond: Tensor | None = None) -> None:
        """Raise a ValueError that says what is wrong with a batch."""
        if x.shape[1:] != self.shape or not x.is_floating_point():
            shape = ", ".join(map(str, self.shape))
            raise ValueError(f"examples must be float (B, {shape}), got {x.dtype} {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError("the batch has NaN or inf; look at the data")
        check_labels(cond, len(x), self.num_classes)
