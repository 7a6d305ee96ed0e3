"""Recipes of Part 2: generators of the `shapes` with one object, 16 classes, all trained with the same arithmetic.

Every model has four layers of width 128, about a million parameters, reads the tokens of a shipped tokenizer, and is
trained until it has done `BUDGET` multiply-adds (`equal_steps`). Images are the first 10,000 of the training split;
tokens are made once. What is compared afterwards is 1,000 samples, each class as often as the others.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal import checkpoints, processes
from minimal.ar.raster import RasterGPT
from minimal.ar.scale import NextScale
from minimal.data.frozen import SPLITS
from minimal.metrics import batched, frechet_distance, label_accuracy
from minimal.nn.token_model import TokenModel
from minimal.recipes.tokenizers import singles
from minimal.samplers.cached import sample_cached
from minimal.samplers.guidance import Guided
from minimal.samplers.trace import Sample, multiply_adds
from minimal.train import EMA, adamw, fit

Trained = tuple[nn.Module, dict[str, float]]
SIZE = dict(dim=128, layers=4, heads=4, dropout=0.1)
BATCH = 32
BUDGET = 7.77e12  # multiply-adds of the forward passes: 4,000 steps of the raster GPT


def equal_steps(model: nn.Module, batch: tuple[Tensor, ...]) -> int:
    """In how many steps on such batches `model` has spent the budget, in steps of 10."""
    return max(10, 10 * round(BUDGET / multiply_adds(lambda: model.loss(*batch)) / 10))


def coded(tokenizer: nn.Module, data: Callable = singles) -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens and labels of every split of `data`."""
    return {split: (batched(tokenizer.encode, data(split).images, 250).clone(), data(split).labels) for split in SPLITS}


def fit_generator(
    model: TokenModel,
    codes: dict[str, tuple[Tensor, Tensor]],
    *,
    steps: int | None = None,
    lr: float = 5e-3,
    batch_size: int = BATCH,
    seed: int = 0,
    device: str = "cpu",
    **options,
):
    """Train on `codes`; keep the averaged weights that are best on validation.

    `steps` defaults to what the budget pays for.
    """
    model.to(device)
    train, (held_out, labels) = (tuple(part.to(device) for part in codes[split]) for split in ("train", "validation"))
    if steps is None:
        steps = equal_steps(model, tuple(part[:batch_size] for part in train))

    def nats(step: int) -> float:
        return model.loss(held_out[:500], labels[:500])[0].item()

    return fit(
        model,
        train,
        adamw(model, lr),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        ema=EMA(model, 0.995),
        validate=nats,
        validate_every=max(1, min(200, steps // 4)),
        **options,
    )


@processes.by_first
def nats_per_image(model: TokenModel, codes: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Negative log-likelihood of the tokens of an image on validation and test, given its label."""
    device, metrics = model.levels.device, {}
    for split in ("validation", "test"):
        parts = zip(*(part.to(device).split(250) for part in codes[split]))
        with torch.inference_mode():
            values = torch.cat([model.logprob(tokens, labels) for tokens, labels in parts])
        metrics[f"{split}_nats_per_image"] = -values.mean().item()
    return metrics


@processes.by_first
@torch.inference_mode()
def judged(
    sample: Callable[..., Sample], paint: Callable[[Tensor], Tensor], n: int = 1000, num_classes: int = 16
) -> dict[str, float]:
    """Label accuracy of `n` balanced samples, their Fréchet distance to the validation images, and forwards per image.

    `sample(n, cond=, generator=)` draws tokens, 250 at a time; `paint` turns them into images.
    """
    judge, cond = checkpoints.load("judge_shapes"), torch.arange(n) % num_classes
    generator, images, forwards = torch.Generator().manual_seed(0), [], 0
    for labels in cond.split(250):
        drawn = sample(len(labels), cond=labels, generator=generator)
        images.append(paint(drawn.tokens).clamp(-1, 1).cpu())
        forwards = sum(drawn.trace.forwards.values())
    images = torch.cat(images)
    real, seen = (batched(judge.features, x) for x in (singles("validation").images, images))
    return {
        "accuracy": label_accuracy(judge, images, cond),
        "frechet": frechet_distance(real, seen),
        "forwards": forwards,
    }


def guided(model: TokenModel, scale: float | Tensor) -> Callable[..., Sample]:
    """`sample_cached` of `model` under guidance."""
    return lambda n, **options: sample_cached(Guided(model, scale), n, **options)


def as_generated(
    model: TokenModel, paint: Callable[[Tensor], Tensor], scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0)
) -> dict[str, float]:
    """`judged` at some scales of guidance."""
    return {
        f"{name}_guidance_{scale:g}": value
        for scale in scales
        for name, value in judged(guided(model, scale), paint).items()
        if name != "forwards"
    }


def shapes_gpt(seed: int = 0, **options) -> Trained:
    """The raster GPT: the 64 tokens of `shapes_vq`, one after another."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    codes = coded(tokenizer)
    model = RasterGPT(tokenizer.vocab_size, tokenizer.length, 16, grid_width=tokenizer.grid[1], **SIZE)
    fit_generator(model, codes, seed=seed, desc="raster GPT", **options)
    return model, nats_per_image(model, codes) | as_generated(model, tokenizer.decode)


def shapes_var(seed: int = 0, **options) -> Trained:
    """VAR: the 4 scales of `shapes_multiscale`, one after another."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_multiscale")
    codes = coded(tokenizer)
    model = NextScale.of(tokenizer, 16, **SIZE)
    fit_generator(model, codes, seed=seed, desc="next scale", **options)
    return model, nats_per_image(model, codes) | as_generated(model, tokenizer.decode)


RECIPES: dict[str, Callable[..., Trained]] = {
    "shapes_gpt": shapes_gpt,
    "shapes_var": shapes_var,
}
