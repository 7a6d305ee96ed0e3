"""Transport models known in closed form: one Gaussian, and a mixture of them, instead of a trained network."""

import torch
from torch import nn

from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow


def column(t):
    return t.view(-1, 1)


class Gaussian(nn.Module):
    """Noise N(0, 1) to data N(mean, deviation²): v(x, t), and with a second argument span u(x, t, t + span).

    `means` (classes + 1, D): one mean for each label, the last one for the null class.
    """

    def __init__(self, means, deviation):
        super().__init__()
        self.means, self.deviation = means, deviation

    def spread(self, t):
        return (t**2 * self.deviation**2 + (1 - t) ** 2).sqrt()

    def flow(self, x, t, r, cond=None):
        """The exact flow map: a trajectory keeps its place within the bell curve."""
        mean = self.means[-1] if cond is None else self.means[cond]
        t, r = column(t), column(r)
        return r * mean + self.spread(r) / self.spread(t) * (x - t * mean)

    def forward(self, x, t, cond=None, span=None):
        if span is not None and (span > 0).all():
            return (self.flow(x, t, t + span, cond) - x) / column(span)
        mean, t = self.means[-1] if cond is None else self.means[cond], column(t)
        return mean + (t * self.deviation**2 - (1 - t)) / self.spread(t) ** 2 * (x - t * mean)


class Mixture(nn.Module):
    """Data from equally likely N(centre, deviation²): E[x1 | x_t] is a weighted mean, and the velocity follows."""

    def __init__(self, centres, deviation):
        super().__init__()
        self.centres, self.deviation = centres, deviation

    def components(self, t):
        return torch.distributions.Normal(t * self.centres, (t**2 * self.deviation**2 + (1 - t) ** 2).sqrt())

    def log_density(self, x, t):
        """log p_t(x) for x (B, D) and one time t (a scalar tensor)."""
        return self.components(t).log_prob(x[:, None]).sum(-1).logsumexp(-1) - torch.tensor(len(self.centres)).log()

    def forward(self, x, t, cond=None):
        t = t[0]  # one time for the whole batch
        weights = self.components(t).log_prob(x[:, None]).sum(-1).softmax(-1)  # (B, K)
        gain = t * self.deviation**2 / (t**2 * self.deviation**2 + (1 - t) ** 2)
        data = (weights[..., None] * (self.centres + gain * (x[:, None] - t * self.centres))).sum(1)
        return (data - x) / (1 - t)


def gaussian(deviation=0.5, means=((1.0, -0.5), (-2.0, 0.25), (0.5, 0.5)), model=FlowMatching, **options):
    """A transport model of points (2,), with two classes and the null class, whose network is the formula."""
    means = torch.tensor(means, dtype=torch.float64)
    return model((2,), num_classes=len(means) - 1, net=Gaussian(means, deviation), **options).eval()


def gaussian_map(**options):
    return gaussian(model=MeanFlow, **options)
