"""Recipes of models that know no order, or all of them: data, size and budget are those of the raster GPT."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minimal import checkpoints, processes
from minimal.ar.any_order import AnyOrderGPT
from minimal.ar.masked import MaskedTransformer, linear
from minimal.metrics import batched, frechet_distance, label_accuracy, precision_recall
from minimal.recipes.autoregressive import SIZE, Trained, as_generated, coded, drawn, fit_generator, nats
from minimal.recipes.tokenizers import singles
from minimal.samplers.masked import ramp, sample_masked

# What is asked of the parallel sampler: 500 samples without guidance, 1,000 with (the count of all other models).
# What is not named is MaskGIT's: 8 steps, cosine, choice temperature 4.5.
SAMPLERS: dict[str, dict] = {
    **{f"steps_{steps}": dict(num_steps=steps) for steps in (1, 2, 4, 8, 16, 64)},
    **{f"linear_{steps}": dict(num_steps=steps, schedule=linear) for steps in (4, 8)},
    **{f"choice_{tau:g}": dict(choice_temperature=tau) for tau in (0.0, 1.0, 15.0, math.inf)},
}


def constant(scale: float) -> Callable[[float], float]:
    return lambda done: scale


GUIDED: dict[str, dict] = {
    "guidance_1": {},
    **{f"guidance_{scale:g}": dict(guidance=constant(scale)) for scale in (2.0, 3.0)},
    **{f"ramp_{scale:g}": dict(guidance=ramp(scale)) for scale in (3.0, 5.0)},
}


def diagonals(rows: int, columns: int) -> Tensor:
    """Places (N,) of a grid, anti-diagonal by anti-diagonal, each from top to bottom."""
    place = torch.arange(rows * columns)
    return (place // columns + place % columns).argsort(stable=True)


@processes.by_first
@torch.inference_mode()
def unmasked(model: MaskedTransformer, paint: Callable[[Tensor], Tensor], samplers: dict, n: int) -> dict[str, float]:
    """Label accuracy, Fréchet distance to the validation images and recall of `n` balanced samples, by sampler."""
    judge, metrics = checkpoints.load("judge_shapes"), {}
    real = batched(judge.features, singles("validation").images)
    for name, options in samplers.items():
        images, labels = drawn(partial(sample_masked, model, **options), paint, n)
        seen = batched(judge.features, images)
        metrics[f"accuracy_{name}"] = label_accuracy(judge, images, labels)
        metrics[f"frechet_{name}"] = frechet_distance(real, seen)
        metrics[f"recall_{name}"] = precision_recall(real[:n], seen).recall
    return metrics


def shapes_maskgit(seed: int = 0, **options) -> Trained:
    """MaskGIT on the 64 tokens of `shapes_vq`; without label smoothing, so that its loss stays a likelihood.

    The rate is that of all models: pilots of 400 steps ended at 4.89 nats per hidden code at 5e-3, 4.83 at 2e-3 and
    5.07 at 1e-3.
    """
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    codes = coded(tokenizer)
    model = MaskedTransformer(
        tokenizer.vocab_size, tokenizer.length, 16, grid_width=tokenizer.grid[1], label_smoothing=0.0, **SIZE
    )
    fit_generator(model, codes, seed=seed, desc="MaskGIT", **options)

    def bound(tokens: Tensor, labels: Tensor) -> Tensor:
        return model.any_order_nats(tokens, labels, draws=8, generator=torch.Generator().manual_seed(0))

    metrics = nats(bound, codes, "any_order")
    metrics |= unmasked(model, tokenizer.decode, SAMPLERS, 500)
    return model, metrics | unmasked(model, tokenizer.decode, GUIDED, 1000)


def shapes_any_order(seed: int = 0, **options) -> Trained:
    """A causal transformer over the shuffled tokens of `shapes_vq`, told which place comes next."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    codes = coded(tokenizer)
    model = AnyOrderGPT(tokenizer.vocab_size, tokenizer.length, 16, grid_width=tokenizer.grid[1], **SIZE)
    fit_generator(model, codes, seed=seed, desc="any order", **options)
    shuffled = torch.randperm(tokenizer.length, generator=torch.Generator().manual_seed(0))
    orders = {"raster": model.order, "diagonal": diagonals(*tokenizer.grid), "random": shuffled}
    metrics = {}
    for name, order in orders.items():
        view = model.in_order(order)
        metrics |= nats(lambda tokens, labels: -view.logprob(tokens[:, order], labels), codes, name)
    return model, metrics | as_generated(model, tokenizer.decode)


RECIPES: dict[str, Callable[..., Trained]] = {"shapes_maskgit": shapes_maskgit, "shapes_any_order": shapes_any_order}
