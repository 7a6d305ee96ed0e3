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
from minimal.recipes.start import fit_averaged
from minimal.recipes.tokenizers import singles
from minimal.samplers.cached import sample_cached
from minimal.samplers.guidance import Guided
from minimal.samplers.trace import Sample, multiply_adds

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

    return fit_averaged(model, train, nats, steps=steps, lr=lr, batch_size=batch_size, seed=seed, **options)


def nats_per_image(model: TokenModel, codes: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Negative log-likelihood of the tokens of an image on validation and test, given its label."""
    return nats(lambda tokens, labels: -model.logprob(tokens, labels), codes, "per_image", model.levels.device)


@processes.by_first
@torch.inference_mode()
def nats(
    of: Callable[[Tensor, Tensor], Tensor],
    codes: dict[str, tuple[Tensor, Tensor]],
    name: str,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Mean of `of(tokens, labels)` (B,) on validation and test."""
    metrics = {}
    for split in ("validation", "test"):
        parts = zip(*(part.to(device).split(250) for part in codes[split]))
        metrics[f"{split}_nats_{name}"] = torch.cat([of(*part) for part in parts]).mean().item()
    return metrics


@torch.inference_mode()
def drawn(
    sample: Callable[..., Sample], paint: Callable[[Tensor], Tensor], n: int, num_classes: int = 16
) -> tuple[Tensor, Tensor]:
    """`n` images, each class as often as the others, and their labels.

    `sample(n, cond=, generator=)` draws tokens, 250 at a time; `paint` turns them into images.
    """
    labels, generator = torch.arange(n) % num_classes, torch.Generator().manual_seed(0)
    parts = [paint(sample(len(cond), cond=cond, generator=generator).tokens) for cond in labels.split(250)]
    return torch.cat(parts).clamp(-1, 1).cpu(), labels


@processes.by_first
@torch.inference_mode()
def judged(sample: Callable[..., Sample], paint: Callable[[Tensor], Tensor], n: int = 1000) -> dict[str, float]:
    """Label accuracy of `n` balanced samples, and their Fréchet distance to the validation images; see `drawn`."""
    judge, (images, labels) = checkpoints.load("judge_shapes"), drawn(sample, paint, n)
    real, seen = (batched(judge.features, x) for x in (singles("validation").images, images))
    return {"accuracy": label_accuracy(judge, images, labels), "frechet": frechet_distance(real, seen)}


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
