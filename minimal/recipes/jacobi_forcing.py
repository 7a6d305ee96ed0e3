"""Recipe of Part 5a: `pydoc_ar`, trained further on the paths of its own greedy Jacobi decoding.

A batch is 6 paths, each read clean and noisy, and 12 windows of the text itself: greedy text repeats itself, and the
model should stay what it was.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal import checkpoints, processes
from minimal.ar.jacobi_forcing import forcing_loss, progressive
from minimal.ar.raster import RasterGPT
from minimal.recipes.text import anywhere, nats_per_character, pydoc, windows
from minimal.samplers.jacobi import sample_jacobi, trajectories
from minimal.train import EMA, adamw, fit

Trained = tuple[nn.Module, dict[str, float]]
PROMPT, BLOCK, RAMP = 32, 16, 4


def prompts(tokens: Tensor, n: int, seed: int = 0) -> Tensor:
    """`n` windows (n, 32) from anywhere in a text."""
    return anywhere(tokens, n, PROMPT, torch.Generator().manual_seed(seed))


def train_further(
    model: RasterGPT,
    train: Tensor,
    held_out: Tensor,
    paths: tuple[Tensor, Tensor] | None,
    *,
    steps: int,
    lr: float = 1e-3,
    batch_size: int = 12,
    weight: float = 0.3,
    seed: int = 0,
    **options,
):
    """Minimise the loss of real windows plus, where `paths` (prompts and iterates) are given, that of Jacobi Forcing.

    Without paths this is the control: as many steps on as much real text.
    """

    def batch(batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        real = anywhere(train, batch_size, model.length, generator).to(held_out.device)
        if paths is None:
            return (real,)
        rows = torch.randint(len(paths[0]), (batch_size // 2,), generator=generator).to(held_out.device)
        enter = torch.randint(RAMP, (batch_size // 2,), generator=generator).to(held_out.device)
        return real, paths[0][rows], paths[1][rows].long(), progressive(paths[1].shape[1], RAMP, enter)

    def step(parts: tuple[Tensor, ...], step: int):
        loss, logs = model.loss(parts[0])
        if paths is None:
            return loss, logs
        forcing, more = forcing_loss(model, *parts[1:], weight=weight)
        return loss + forcing, logs | more

    return fit(
        model,
        batch,
        adamw(model, lr),
        steps=steps,
        step_fn=step,
        batch_size=batch_size,
        seed=seed,
        ema=EMA(model, 0.99),
        validate=lambda step: nats_per_character(model, held_out),
        validate_every=max(1, min(200, steps // 4)),
        keep_best=False,
        autocast=True,
        **options,
    )


@torch.inference_mode()
def iterations(model: RasterGPT, block: int, n: int = 32, **options) -> tuple[float, Tensor]:
    """Jacobi iterations per token behind `n` validation prompts, and what was written (n, N - 32)."""
    given = prompts(pydoc("validation").tokens, n).to(model.levels.device)
    sample = sample_jacobi(model, n, block=block, prompt=given, **options)
    return sample.trace.rows["target"] / (n * (model.length - PROMPT)), sample.tokens[:, PROMPT:]


def repeats(tokens: Tensor, size: int = 8) -> float:
    """The share of the phrases of `size` tokens in `tokens` (n, N) that stood in their row before."""
    phrases = [[tuple(phrase) for phrase in row] for row in tokens.unfold(1, size, 1).tolist()]
    return 1 - sum(len(set(row)) for row in phrases) / sum(map(len, phrases))


@processes.by_first
@torch.inference_mode()
def measured(model: RasterGPT, name: str = "") -> dict[str, float]:
    """What training did to the likelihood, and to the iterations that greedy and random decoding need."""
    held_out = windows(pydoc("validation").tokens).to(model.levels.device)
    metrics = {f"{name}validation_nats_per_character": nats_per_character(model, held_out)}
    for block in (8, 16, 32):
        metrics[f"{name}greedy_iterations_{block}"], tokens = iterations(model, block, temperature=0)
    metrics[f"{name}greedy_repeats"] = repeats(tokens)
    metrics[f"{name}sampled_iterations_16"], _ = iterations(model, 16, generator=torch.Generator().manual_seed(0))
    return metrics


def pydoc_jacobi(
    steps: int = 850, seed: int = 0, device: str = "cpu", rows: int = 800, save_to=None, **options
) -> Trained:
    """`pydoc_ar`, which must be trained before, after Jacobi Forcing at block 16 behind `rows` training prompts.

    Its header compares it with `pydoc_ar` before, and with a control: as many further steps on real text alone.
    """
    train, held_out = pydoc("train").tokens, windows(pydoc("validation").tokens).to(device)
    model = checkpoints.load("pydoc_ar", device)
    metrics = measured(model, "before_")
    control = copy.deepcopy(model)
    given = prompts(train, rows, seed).to(device)
    paths = torch.cat([trajectories(model, part, BLOCK, temperature=0).short() for part in given.split(100)])
    options |= dict(steps=steps, seed=seed)
    train_further(model, train, held_out, (given, paths), save_to=save_to, desc="Jacobi Forcing", **options)
    metrics |= measured(model)
    test = windows(pydoc("test").tokens).to(device)
    metrics["test_nats_per_character"] = nats_per_character(model, test)
    train_further(control, train, held_out, None, desc="control", **options)
    return model, metrics | measured(control, "control_")


RECIPES: dict[str, Callable[..., Trained]] = {"pydoc_jacobi": pydoc_jacobi}
