"""Recipes of Part 0: the models of the tour, on the digits. The course's live training calls the same bodies with fewer
steps.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal import checkpoints, processes
from minimal.ar.raster import RasterGPT
from minimal.data import Images, load
from minimal.data.augment import random_shift
from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.metrics import batched, bits_per_dim, frechet_distance, label_accuracy
from minimal.recipes.tokenizers import measured
from minimal.samplers.flow import sample_flow, sample_flow_map
from minimal.tokenizers.pixels import PixelTokenizer
from minimal.tokenizers.vq import VQTokenizer
from minimal.train import EMA, adamw, fit

Trained = tuple[nn.Module, dict[str, float]]


# Autoregressive models over tokens


def fit_tokens(
    model: RasterGPT,
    encode: Callable[[Tensor], Tensor],
    data: Callable[[str], Images],
    *,
    steps: int,
    lr: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
    **options,
):
    """Train a token model on randomly shifted images; keep the averaged weights that are best on validation."""
    train, validation = data("train"), data("validation")
    model.to(device)

    held_out, labels = encode(validation.images).to(device), validation.labels.to(device)

    def nats_per_token(step: int) -> float:
        return -logprob(model, held_out, labels).mean().item() / model.length

    batch = shifted(train, encode, device)
    return fit_averaged(
        model, batch, nats_per_token, steps=steps, lr=lr, batch_size=batch_size, seed=seed, every=100, **options
    )


def fit_averaged(
    model: nn.Module,
    data: Callable | tuple[Tensor, ...],
    validate: Callable[[int], float],
    *,
    steps: int,
    lr: float,
    every: int = 200,
    **options,
):
    """`fit` as token models are trained: averaged weights, of which those stay that are best on validation.

    Validated every `every` steps, and at least four times.
    """
    return fit(
        model,
        data,
        adamw(model, lr),
        steps=steps,
        ema=EMA(model, 0.995),
        validate=validate,
        validate_every=max(1, min(every, steps // 4)),
        **options,
    )


def shifted(train: Images, encode: Callable[[Tensor], Tensor], device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Batches of tokens and labels; every other image is moved a little."""

    def batch(batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(train), (batch_size,), generator=generator)
        return encode(random_shift(train.images[rows], generator, share=0.5)).to(device), train.labels[rows].to(device)

    return batch


def logprob(model: nn.Module, tokens: Tensor, labels: Tensor | None, batch_size: int = 500) -> Tensor:
    """Log-likelihoods (B,), some at a time."""
    parts = zip(tokens.split(batch_size), [None] * len(tokens) if labels is None else labels.split(batch_size))
    return torch.cat([model.logprob(part, cond) for part, cond in parts])


@processes.by_first
@torch.inference_mode()
def bits(
    model: nn.Module, encode: Callable[[Tensor], Tensor], images: Images, dims: int, labelled: bool = True
) -> dict[str, float]:
    """Bits per dimension of held-out images, and the standard error of their mean."""
    device = next(model.parameters()).device
    labels = images.labels.to(device) if labelled else None
    values = bits_per_dim(-logprob(model, encode(images.images).to(device), labels), dims)
    return {"bits_per_dim": values.mean().item(), "standard_error": values.std().item() / math.sqrt(len(values))}


def pixel_tokenizer(data: Images) -> PixelTokenizer:
    """Pixels of `data` in 17 grey levels: what the digits have."""
    return PixelTokenizer(17, data.image_shape)


def pixel_gpt(data: Images, dim: int = 96, layers: int = 4, heads: int = 4, dropout: float = 0.1) -> RasterGPT:
    """An untrained model of those tokens, conditional on the label."""
    height, width = data.image_shape[1:]
    return RasterGPT(
        17, height * width, data.num_classes, grid_width=width, dim=dim, layers=layers, heads=heads, dropout=dropout
    )


DRAFT = {"dim": 32, "layers": 1, "heads": 2, "dropout": 0.0}  # one layer of a third of the width


def digits(split: str) -> Images:
    return load("digits", split)


def digits_ar(steps: int = 2000, **options) -> Trained:
    """The pixel transformer of the digits: 0.45 M parameters, exact likelihood, the target of the fast samplers."""
    return train_pixels({"dropout": 0.2}, steps=steps, **options)


def digits_draft(steps: int = 1200, **options) -> Trained:
    """Its draft for speculative sampling: 3 % of its multiply-adds."""
    return train_pixels(DRAFT, steps=steps, lr=4e-3, **options)


def train_pixels(size: dict, seed: int = 0, **options) -> Trained:
    torch.manual_seed(seed)
    model, encode = pixel_gpt(digits("train"), **size), pixel_tokenizer(digits("train")).encode
    fit_tokens(model, encode, digits, seed=seed, desc="pixels", **options)
    metrics = {}
    for split in ("validation", "test"):
        for name, labelled in (("", True), ("_unlabelled", False)):
            for key, value in bits(model, encode, digits(split), 64, labelled).items():
                metrics[f"{split}{name}_{key}"] = value
    return model, metrics


# Tokenizers, and a model of their tokens


def fit_vq(
    tokenizer: VQTokenizer, data: Callable[[str], Images], *, steps: int, seed: int = 0, device: str = "cpu", **options
):
    """Train a tokenizer on shifted images; keep the weights with the lowest validation error."""
    train, held_out = data("train"), data("validation").images.to(device)
    tokenizer.to(device)

    def batch(batch_size: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (batch_size,), generator=generator)
        return random_shift(train.images[rows], generator).to(device)

    def error(step: int) -> float:
        return (tokenizer.decode(tokenizer.encode(held_out)) - held_out).square().mean().item()

    return fit(
        tokenizer,
        batch,
        adamw(tokenizer, 2e-3),
        steps=steps,
        seed=seed,
        validate=error,
        validate_every=min(200, steps),
        **options,
    )


def digits_vq(steps: int = 3000, seed: int = 0, **options) -> Trained:
    """The digits in 4 x 4 codes of 128: 112 bits an image."""
    torch.manual_seed(seed)
    tokenizer = VQTokenizer(digits("train").image_shape, codebook_size=128, decay=0.98)
    fit_vq(tokenizer, digits, steps=steps, seed=seed, desc="VQ-VAE", **options)
    return tokenizer, measured(tokenizer, digits)


def code_gpt(tokenizer: VQTokenizer, num_classes: int, dropout: float = 0.2) -> RasterGPT:
    """An untrained model of the codes of `tokenizer`, conditional on the label."""
    return RasterGPT(tokenizer.vocab_size, tokenizer.length, num_classes, grid_width=tokenizer.grid[1], dropout=dropout)


def digits_vq_prior(steps: int = 1500, seed: int = 0, **options) -> Trained:
    """A transformer over the codes of `digits_vq`, which must be trained before."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("digits_vq")
    model = code_gpt(tokenizer, digits("train").num_classes)
    fit_tokens(model, tokenizer.encode, digits, steps=steps, seed=seed, desc="transformer over codes", **options)
    return model, nats(model, tokenizer)


@processes.by_first
def nats(model: RasterGPT, tokenizer: VQTokenizer) -> dict[str, float]:
    """Negative log-likelihood of the codes of a digit."""
    device, metrics = model.head.weight.device, {}
    for split in ("validation", "test"):
        images, labels = digits(split).images, digits(split).labels.to(device)
        metrics[f"{split}_nats_per_image"] = -model.logprob(tokenizer.encode(images).to(device), labels).mean().item()
    return metrics


# Flows


def fit_flow(
    model: FlowMatching, data: Callable[[str], Images], *, steps: int, seed: int = 0, device: str = "cpu", **options
):
    """Train a transport model; its averaged weights stay. No shifts here: samples should lie where the digits lie."""
    train, validation = data("train"), data("validation")
    model.to(device)

    def held_out(step: int) -> float:
        """Regression of the velocity on held-out images, over 10 draws of noise and time."""
        x1, cond = validation.images.repeat(10, 1, 1, 1).to(device), validation.labels.repeat(10).to(device)
        return FlowMatching.loss(model, x1, cond)[0].item()

    return fit(
        model,
        (train.images.to(device), train.labels.to(device)),
        adamw(model, 2e-3, weight_decay=0.01),
        steps=steps,
        batch_size=256,
        seed=seed,
        ema=EMA(model, 0.999),
        validate=held_out,
        validate_every=max(1, min(500, steps)),
        keep_best=False,
        **options,
    )


def digits_flow(steps: int = 3000, seed: int = 0, **options) -> Trained:
    """Flow matching on the digits: 0.50 M parameters, a minute."""
    torch.manual_seed(seed)
    data = digits("train")
    model = FlowMatching(data.image_shape, data.num_classes, dropout=0.15)
    fit_flow(model, digits, steps=steps, seed=seed, desc="flow matching", **options)
    return model, {
        f"{name}_{num_steps}_steps": value
        for num_steps in (50, 10, 1)
        for name, value in judged(model, sample_flow, num_steps).items()
    }


def digits_mean_flow(steps: int = 3000, seed: int = 0, **options) -> Trained:
    """The same network with a second time, trained as a flow map: the images of 50 steps in one."""
    torch.manual_seed(seed)
    data = digits("train")
    model = MeanFlow(data.image_shape, data.num_classes, dropout=0.1)
    fit_flow(model, digits, steps=steps, seed=seed, desc="mean flow", **options)
    return model, {
        f"{name}_{num_steps}_steps": value
        for num_steps in (1, 2, 4)
        for name, value in judged(model, sample_flow_map, num_steps).items()
    }


@processes.by_first
def judged(model: nn.Module, sampler: Callable, num_steps: int, n: int = 1000) -> dict[str, float]:
    """Label accuracy of `n` samples, as many of each class, and their Fréchet distance to all validation images."""
    judge, device = checkpoints.load("judge_digits"), next(model.parameters()).device
    cond = torch.arange(n) % model.num_classes
    generator = torch.Generator().manual_seed(0)
    images = sampler(model, n, cond=cond.to(device), num_steps=num_steps, generator=generator).images.cpu()
    real, sampled = (batched(judge.features, x) for x in (digits("validation").images, images))
    return {"accuracy": label_accuracy(judge, images, cond), "frechet": frechet_distance(real, sampled)}


def tour_networks(data: Callable[[str], Images], seed: int = 0, device: str = "cpu") -> dict[str, nn.Module]:
    """The tour's other networks, trained in some minutes on a data set that has no checkpoints."""
    torch.manual_seed(seed)
    shape, classes = data("train").image_shape, data("train").num_classes
    tokenizer = VQTokenizer(shape, codebook_size=128, decay=0.98)
    fit_vq(tokenizer, data, steps=600, seed=seed, device=device, desc="VQ-VAE")
    codes = code_gpt(tokenizer, classes, dropout=0.0)
    schedule = dict(steps=700, batch_size=32, lr=4e-3, warmup=0.1, seed=seed, device=device)
    fit_tokens(codes, lambda x: tokenizer.encode(x.to(device)), data, desc="transformer over codes", **schedule)
    flow, mean_flow = FlowMatching(shape, classes), MeanFlow(shape, classes)
    fit_flow(flow, data, steps=2000, seed=seed, device=device, desc="flow matching")
    fit_flow(mean_flow, data, steps=2000, seed=seed, device=device, desc="mean flow")
    return {"codes": codes, "code_tokenizer": tokenizer, "flow": flow, "mean_flow": mean_flow}


RECIPES: dict[str, Callable[..., Trained]] = {
    "digits_ar": digits_ar,
    "digits_draft": digits_draft,
    "digits_vq": digits_vq,
    "digits_vq_prior": digits_vq_prior,
    "digits_flow": digits_flow,
    "digits_mean_flow": digits_mean_flow,
}
