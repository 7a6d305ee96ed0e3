"""Recipes of FlexVAR: a tokenizer for maps of any size, and a generator for any list of sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

from minimal import checkpoints, processes
from minimal.ar.flex_scale import FlexScale
from minimal.data.frozen import SPLITS
from minimal.metrics import batched, psnr
from minimal.recipes.autoregressive import (
    BATCH,
    BUDGET,
    SIZE,
    Trained,
    as_generated,
    fit_generator,
    guided,
    judged,
    nats_per_image,
)
from minimal.recipes.tokenizers import FRAME, fit_tokenizer, measured, singles
from minimal.samplers.trace import multiply_adds
from minimal.tokenizers.flex_scale import FlexScaleTokenizer

LISTS = {3: (1, 4, 8), 4: (1, 2, 4, 8), 5: (1, 2, 4, 6, 8), 7: (1, 2, 3, 4, 5, 6, 8)}  # by their number of steps
LARGER = (1, 2, 4, 8, 12)  # ends at a size that training never shows


@processes.by_first
@torch.inference_mode()
def by_side(tokenizer: FlexScaleTokenizer, sides: tuple[int, ...]) -> dict[str, float]:
    """Mean PSNR of maps of so many cells a side, against the images shrunk to their size, on validation and test."""
    metrics = {}
    for split in ("validation", "test"):
        images = singles(split).images.to(tokenizer.levels.device)
        for p in sides:
            painted = batched(lambda x: tokenizer.decode(tokenizer.pyramid(x, (p,))), images).clamp(-1, 1)
            metrics[f"{split}_psnr_{p}"] = psnr(painted, tokenizer.shrunk(images, p)).mean().item()
    return metrics


def shapes_flex(steps: int = 3000, seed: int = 0, **options) -> Trained:
    """FlexVAR's tokenizer: 8 x 8 cells of 512 codes, and any smaller map of them."""
    torch.manual_seed(seed)
    tokenizer = FlexScaleTokenizer(**FRAME, codebook_size=512, dim=8)
    fit_tokenizer(tokenizer, singles, steps=steps, batch_size=32, seed=seed, desc="flexible scales", **options)
    return tokenizer, measured(tokenizer, singles) | by_side(tokenizer, (1, 2, 4, 6))


def random_list(model: FlexScale) -> Callable:
    """A step of training: each batch is written by a list of its own."""

    def step(batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict]:
        tokens, labels = batch
        scales = model.random_scales()
        return model.with_scales(scales).loss(model.maps(tokens, scales), labels)

    return step


def mean_cost(step: Callable, batch: tuple[Tensor, Tensor], draws: int = 32) -> float:
    """Multiply-adds of a step, averaged over lists."""
    return sum(multiply_adds(lambda: step(batch, 0)) for _ in range(draws)) / draws


def shown(tokenizer: FlexScaleTokenizer, model: FlexScale) -> Callable[[Tensor], Tensor]:
    """From the tokens of all maps to the last one as images of the tokenizer's size."""

    def paint(tokens: Tensor) -> Tensor:
        return tokenizer.shrunk(tokenizer.decode(model.split(tokens)[-1]), tokenizer.side)

    return paint


def shapes_flexvar(steps: int | None = None, seed: int = 0, **options) -> Trained:
    """FlexVAR: maps of `shapes_flex`, a random list of sides for every batch. Validated on the list of all sides."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_flex")
    model = FlexScale.of(tokenizer, 16, **SIZE)
    codes = {}
    for split in SPLITS:
        images, labels = singles(split).images, singles(split).labels
        codes[split] = (batched(lambda x: tokenizer.pyramid(x, model.scales), images, 250).clone(), labels)
    step = random_list(model)
    if steps is None:
        steps = 10 * round(BUDGET / mean_cost(step, tuple(part[:BATCH] for part in codes["train"])) / 10)
    fit_generator(model, codes, steps=steps, seed=seed, step_fn=step, desc="flexible scales", **options)
    return model, by_list(model, tokenizer, codes)


def by_list(model: FlexScale, tokenizer: FlexScaleTokenizer, codes: dict) -> dict[str, float]:
    """Likelihood and samples of four steps, at several scales of guidance; samples of other lists at one."""
    four = model.with_scales(LISTS[4])
    parts = {split: (model.maps(tokens, four.scales), labels) for split, (tokens, labels) in codes.items()}
    metrics = nats_per_image(four, parts) | as_generated(four, shown(tokenizer, four))
    for name, scales in LISTS.items() | {("larger", LARGER)}:
        view = model.with_scales(scales)
        values = judged(guided(view, 2.0), shown(tokenizer, view))
        metrics |= {f"{key}_steps_{name}": value for key, value in values.items()}
    return metrics


RECIPES: dict[str, Callable[..., Trained]] = {
    "shapes_flex": shapes_flex,
    "shapes_flexvar": shapes_flexvar,
}
