"""Sampling from flows: integrate a velocity in many steps, or cross the interval in one (arXiv 2210.02747, 2505.13447).

    flow        dx/dt = v(x, t, c) from noise at t = 0 to data at t = 1, on a grid of times, by any solver
    flow map    x_r = x_t + (r − t) u(x_t, t, r, c), exact for any r if u is the average velocity

Guidance (arXiv 2207.12598) moves the field away from what an unlabelled image would do, v = v_null + w (v_c −
v_null). With w = 1 it is the conditional field and costs nothing; else the batch is doubled.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal.flows.solvers import integrate, time_grid
from minimal.samplers.trace import Sample, Trace


def guided_velocity(
    model: nn.Module, cond: Tensor | None = None, guidance_scale: float = 1.0, trace: Trace | None = None
) -> Callable[[Tensor, float], Tensor]:
    """The field (x, t) -> v for a solver, with t a number. Each call is counted in `trace`."""
    guided = guidance_scale != 1.0
    if guided and (cond is None or not model.num_classes):
        raise ValueError("guidance needs a class-conditional model and labels: pass cond, a long tensor (n,)")
    labels = torch.cat((cond, torch.full_like(cond, model.num_classes))) if guided else cond

    def velocity(x: Tensor, t: float) -> Tensor:
        if trace is not None:
            trace.count("velocity", len(x), positions=2 if guided else 1)
        x = torch.cat((x, x)) if guided else x
        v = model.velocity(x, x.new_full((len(x),), t), labels)
        if not guided:
            return v
        conditional, null = v.chunk(2)
        return torch.lerp(null, conditional, guidance_scale)

    return velocity


@torch.inference_mode()
def sample_flow(
    model: nn.Module,
    n: int,
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_steps: int = 50,
    solver: str = "euler",
    shift: float = 1.0,
    guidance_scale: float = 1.0,
) -> Sample:
    """Draw `n` images by solving the equation. `cond` (n,) labels; solver and shift: see flows/solvers.py."""
    times = time_grid(num_steps, shift)
    x, trace = start(model, n, cond, generator), Trace()
    x = integrate(guided_velocity(model, cond, guidance_scale, trace), x, times, solver)
    return Sample(trace.stop(), images=x.clamp(-1, 1))


@torch.inference_mode()
def sample_flow_map(
    model: nn.Module,
    n: int,
    *,
    cond: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_steps: int = 1,
) -> Sample:
    """Draw `n` images from a model with `average_velocity(x, t, r, cond)`, in `num_steps` equal steps."""
    times = time_grid(num_steps)
    x, trace = start(model, n, cond, generator), Trace()
    for t, r in zip(times[:-1], times[1:]):
        trace.count("average velocity", n)
        x = x + (r - t) * model.average_velocity(x, x.new_full((n,), t), x.new_full((n,), r), cond)
    return Sample(trace.stop(), images=x.clamp(-1, 1))


def start(model: nn.Module, n: int, cond: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Check what a sampler was asked for; return noise (n, ...)."""
    if n < 1:
        raise ValueError(f"asked for {n} samples; give at least 1")
    if model.training:
        raise ValueError("the model is in training mode, where dropout is on; call model.eval() before sampling")
    x = torch.randn(n, *model.shape, generator=generator).to(next(model.parameters(), torch.empty(0)))
    model.check(x, cond)
    return x
