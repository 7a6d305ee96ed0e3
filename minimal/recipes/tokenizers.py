"""Recipes of Part 1: tokenizers of the `shapes` scenes, each trained the same way, so that only the idea differs.

All grid tokenizers share one frame (8 x 8 cells, a quarter of a million parameters) and one schedule.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from minimal import checkpoints, judge, processes
from minimal.data import Images, load, words
from minimal.data.frozen import SPLITS
from minimal.measure import decoded
from minimal.metrics import batched, codebook_usage, frechet_distance, label_accuracy, perplexity, psnr
from minimal.tokenizers.adversarial import AdversarialStep, PatchDiscriminator
from minimal.tokenizers.bsq import BSQTokenizer
from minimal.tokenizers.detail_flow import DetailFlowTokenizer
from minimal.tokenizers.fsq import FSQTokenizer
from minimal.tokenizers.ifsq import IFSQTokenizer
from minimal.tokenizers.kl import KLTokenizer
from minimal.tokenizers.lfq import LFQTokenizer
from minimal.tokenizers.multiscale import MultiScaleTokenizer
from minimal.tokenizers.nested import Law, doublings, uniform
from minimal.tokenizers.one_d import OneDTokenizer, QueryTokenizer
from minimal.tokenizers.perceptual import PerceptualDistance, sharpness
from minimal.tokenizers.residual import ResidualTokenizer
from minimal.tokenizers.vq import VQTokenizer
from minimal.train import EMA, adamw, fit

Trained = tuple[nn.Module, dict[str, float]]
FRAME = dict(image_shape=(3, 32, 32), widths=(32, 64), patch=2)  # 32 x 32 pixels to 8 x 8 cells


def scenes(split: str) -> Images:
    return load("shapes", split, version="scene")


def fit_tokenizer(
    tokenizer: nn.Module,
    data: Callable[[str], Images] = scenes,
    *,
    steps: int = 3000,
    lr: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
    **options,
):
    """Train on the images of `data`; keep the averaged weights with the lowest validation error.

    Real-numbered tokens get unit variance over these images in the end.
    """
    train, held_out = data("train").images.to(device), data("validation").images[:500].to(device)
    tokenizer.to(device)

    def error(step: int) -> float:
        return (tokenizer.decode(tokenizer.encode(held_out)) - held_out).square().mean().item()

    history = fit(
        tokenizer,
        (train,),
        adamw(tokenizer, lr),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        ema=EMA(tokenizer, 0.99),
        validate=error,
        validate_every=min(250, steps),
        **options,
    )
    if isinstance(tokenizer, KLTokenizer):
        tokenizer.calibrate(train)
    return history


@processes.by_first
@torch.inference_mode()
def measured(tokenizer: nn.Module, data: Callable[[str], Images] = scenes) -> dict[str, float]:
    """Mean PSNR per image (dB, range 2) and share of codes used, on validation and test."""
    metrics = {}
    for split in ("validation", "test"):
        images = data(split).images.to(next(tokenizer.parameters()).device)
        tokens = batched(tokenizer.encode, images, 250)
        metrics[f"{split}_psnr"] = psnr(decoded(tokenizer, tokens), images).mean().item()
        if tokenizer.vocab_size is not None:
            metrics[f"{split}_codes_used"] = codebook_usage(tokens, tokenizer.vocab_size)
    return metrics


def of_scenes(build: Callable[..., nn.Module], **arguments) -> Callable[..., Trained]:
    """The recipe that trains `build(**arguments)` in the common frame."""

    def recipe(seed: int = 0, **options) -> Trained:
        torch.manual_seed(seed)
        tokenizer = build(**FRAME, **arguments)
        fit_tokenizer(tokenizer, seed=seed, desc=build.__name__, **options)
        return tokenizer, measured(tokenizer)

    return recipe


def kl_of_scenes(weight: float) -> Callable[..., Trained]:
    """The recipe of a KL autoencoder: 8 x 8 cells of 4 real numbers.

    It keeps the last weights. The error alone would choose early ones, from before the KL has made itself felt.
    """

    def recipe(seed: int = 0, **options) -> Trained:
        torch.manual_seed(seed)
        tokenizer = KLTokenizer(**FRAME, dim=4, weight=weight)
        fit_tokenizer(tokenizer, seed=seed, desc="KLTokenizer", keep_best=False, **options)
        held_out = scenes("validation").images.to(tokenizer.levels.device)
        nats = batched(lambda x: tokenizer.posterior(x).kl().flatten(1).sum(1), held_out).mean().item()
        return tokenizer, measured(tokenizer) | {"validation_kl_nats": nats}

    return recipe


# Scenes and text: the tokenizers of chapter 07, and the reader that says whether text survived


def mixture(split: str) -> Images:
    """Scenes and words in turn."""
    pairs = torch.stack([scenes(split).images, words.load(split).images], dim=1)
    return Images(pairs.flatten(0, 1), name="scenes and words", split=split)


def of_mixture(build: Callable[..., nn.Module], **arguments) -> Callable[..., Trained]:
    """The recipe that trains `build(**arguments)` in the common frame, on scenes and words, for a third as long."""

    def recipe(steps: int = 1000, seed: int = 0, **options) -> Trained:
        torch.manual_seed(seed)
        tokenizer = build(**FRAME, **arguments)
        fit_tokenizer(tokenizer, mixture, steps=steps, seed=seed, desc=build.__name__, **options)
        return tokenizer, measured(tokenizer, mixture)

    return recipe


def words_reader(steps: int = 1000, **options) -> Trained:
    """The network that reads one character at a time, of pictures cut into cells: it cannot guess from neighbours."""
    return judge.fit_judge(*(words.letters(split) for split in SPLITS), steps=steps, desc="reader", **options)


# A low rate, where squared errors blur, and three losses: chapter 04

LOW_RATE = dict(image_shape=(3, 32, 32), codebook_size=16, dim=8, widths=(32, 64), patch=4)  # 4 x 4 codes: 64 bits


def singles(split: str) -> Images:
    return load("shapes", split, version="single")


def perceptual_shapes(steps: int = 300, seed: int = 0, **options) -> Trained:
    """The network inside the perceptual loss. It is not the judge: half as wide, and from another seed."""
    parts, desc = (singles(split) for split in SPLITS), "perceptual network"
    return judge.fit_judge(*parts, steps=steps, width=16, seed=seed + 1, desc=desc, **options)


def of_losses(perceptual_weight: float = 0.0, adversarial_weight: float = 0.0) -> Callable[..., Trained]:
    """The recipe that trains a tokenizer of the low rate with these weights; the discriminator joins after 40 %.

    The last weights are kept, since the squared error on held-out images would choose against the discriminator.
    """

    def recipe(steps: int = 1000, seed: int = 0, device: str = "cpu", **options) -> Trained:
        torch.manual_seed(seed)
        tokenizer, discriminator = VQTokenizer(**LOW_RATE).to(device), PatchDiscriminator(3).to(device)
        network = checkpoints.load("perceptual_shapes", device).trunk if perceptual_weight else None
        step = AdversarialStep(
            tokenizer,
            discriminator if adversarial_weight else None,
            network and PerceptualDistance(network),
            start=2 * steps // 5,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
        )
        fit(
            {"tokenizer": tokenizer, "discriminator": discriminator},
            (singles("train").images.to(device),),
            [adamw(tokenizer, 2e-3), adamw(discriminator, 1e-3, betas=(0.5, 0.9))],
            steps=steps,
            step_fn=step,
            batch_size=32,
            seed=seed,
            ema=EMA(tokenizer, 0.99),
            desc="low rate",
            **options,
        )
        return tokenizer, measured(tokenizer, singles) | as_seen(tokenizer)

    return recipe


@processes.by_first
def as_seen(tokenizer: nn.Module) -> dict[str, float]:
    """Fréchet distance and share of right labels in the judge's eyes, and sharpness, on validation and test."""
    device = next(tokenizer.parameters()).device
    seer, metrics = checkpoints.load("judge_shapes", device), {}
    for split in ("validation", "test"):
        images, labels = (x.to(device) for x in (singles(split).images, singles(split).labels))
        painted = decoded(tokenizer, batched(tokenizer.encode, images, 250))
        metrics[f"{split}_frechet"] = frechet_distance(batched(seer.features, painted), batched(seer.features, images))
        metrics[f"{split}_accuracy"] = label_accuracy(seer, painted, labels)
        metrics[f"{split}_sharpness"] = sharpness(painted, images)
    return metrics


# Tokens in one dimension: chapter 06


@processes.by_first
@torch.inference_mode()
def by_length(
    tokenizer: QueryTokenizer, lengths: Sequence[int], data: Callable[[str], Images] = singles
) -> dict[str, float]:
    """Mean PSNR per image from the first k tokens, for every k of `lengths`, on validation and test."""
    metrics = {}
    for split in ("validation", "test"):
        images = data(split).images.to(tokenizer.levels.device)
        tokens = batched(tokenizer.encode, images)
        for k in lengths:
            shown = batched(lambda part: tokenizer.decode(part, upto=k), tokens).clamp(-1, 1)
            metrics[f"{split}_psnr_{k}"] = psnr(shown, images).mean().item()
    return metrics


def one_d_of_singles(
    build: Callable[..., QueryTokenizer], lengths: Sequence[int], enough: int, **arguments
) -> Callable[..., Trained]:
    """The recipe that trains `build(**arguments)` for `enough` steps, images from 1, 2, .. tokens included."""

    def recipe(steps: int = enough, seed: int = 0, **options) -> Trained:
        torch.manual_seed(seed)
        tokenizer, schedule = build((3, 32, 32), **arguments), dict(steps=steps, lr=1e-3, batch_size=32, seed=seed)
        fit_tokenizer(tokenizer, singles, desc=build.__name__, **schedule, **options)
        return tokenizer, measured(tokenizer, singles) | by_length(tokenizer, lengths)

    return recipe


def of_digits(law: Law) -> Callable[..., Trained]:
    """The recipe of 8 tokens of 64 codes on the digits under a law of lengths: three seeds, of which the last is kept.

    The validation error of every prefix and the entropy in bits of every token go into the metrics, for each seed.
    """

    def recipe(steps: int = 1500, seed: int = 0, device: str = "cpu", save_to=None, **options) -> Trained:
        images, held_out = (load("digits", split).images.to(device) for split in ("train", "validation"))
        metrics = {}
        for run in (seed + 2, seed + 1, seed):
            torch.manual_seed(run)
            tokenizer = OneDTokenizer((1, 8, 8), 8, law, codebook_size=64, patch=2, width=32, layers=2, heads=2)
            options["save_to"] = save_to if run == seed else None
            optimizer, ema = adamw(tokenizer.to(device), 2e-3), EMA(tokenizer, 0.99)
            fit(tokenizer, (images,), optimizer, steps=steps, batch_size=64, seed=run, ema=ema, **options)
            with torch.inference_mode():
                seen, tokens = tokenizer.encode(images), tokenizer.encode(held_out)
                for k in range(1, 9):
                    shown = tokenizer.decode(tokens, upto=k)
                    metrics[f"seed{run}_mse_{k}"] = (shown - held_out).square().mean().item()
                    metrics[f"seed{run}_bits_{k}"] = math.log2(perplexity(seen[:, k - 1], 64))
        return tokenizer, metrics

    return recipe


RECIPES: dict[str, Callable[..., Trained]] = {
    # 8 x 8 codes of 625: 594 bits an image, or 576 where a power of two is needed
    "shapes_vq": of_scenes(VQTokenizer, codebook_size=625, dim=8),
    "shapes_fsq": of_scenes(FSQTokenizer, levels=(5, 5, 5, 5)),
    "shapes_ifsq": of_scenes(IFSQTokenizer, levels=(5, 5, 5, 5), bins="equal"),
    "shapes_lfq": of_scenes(LFQTokenizer, bits=9, entropy_weight=0.01, commitment_weight=0.01),
    "shapes_bsq": of_scenes(BSQTokenizer, bits=9, entropy_weight=0.001, commitment_weight=0.01),
    # 4 x 64 codes of 5, the same 594 bits; and 1 + 4 + 16 + 64 codes of 256, 680 bits
    "shapes_residual": of_scenes(ResidualTokenizer, codebook_size=5, dim=8, depth=4, dropout=0.5),
    "shapes_multiscale": of_scenes(MultiScaleTokenizer, codebook_size=256, dim=8, scales=(1, 2, 4, 8)),
    "shapes_kl": kl_of_scenes(1e-6),  # 256 real numbers, worth about 620 bits
    # Scenes and words: six waists in one frame
    "words_reader": words_reader,
    "mixed_kl": of_mixture(KLTokenizer, dim=4, weight=1e-6),  # 256 real numbers
    "mixed_residual": of_mixture(ResidualTokenizer, codebook_size=64, dim=8, depth=4),  # 1536 bits
    "mixed_vq1024": of_mixture(VQTokenizer, codebook_size=1024, dim=8),  # 640 bits
    "mixed_lfq": of_mixture(LFQTokenizer, bits=10, entropy_weight=0.01, commitment_weight=0.01),  # 640 bits
    "mixed_fsq": of_mixture(FSQTokenizer, levels=(8, 5, 5, 5)),  # 638 bits
    "mixed_vq64": of_mixture(VQTokenizer, codebook_size=64, dim=8),  # 384 bits
    # 4 x 4 codes of 16, three losses
    "perceptual_shapes": perceptual_shapes,
    "low_rate_mse": of_losses(),
    "low_rate_perceptual": of_losses(perceptual_weight=0.05),
    "low_rate_adversarial": of_losses(perceptual_weight=0.05, adversarial_weight=0.8),
    # In one dimension: 32 codes of 256 and 16 of 256; digits from 8 of 64, without and with 6 redundant tokens
    "shapes_one_d": one_d_of_singles(OneDTokenizer, (1, 2, 4, 8, 16, 32), 8000, length=32, law=doublings(32)),
    "shapes_detail_flow": one_d_of_singles(DetailFlowTokenizer, (1, 2, 3, 4, 8, 12, 16), 6000, length=16, group=4),
    "digits_nested": of_digits(uniform(8)),
    "digits_retok": of_digits(uniform(14)),
}
