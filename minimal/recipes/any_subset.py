"""Recipes of any-subset models, which fill holes wherever they are: digits, and windows of 64 characters of `pydoc`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal import processes
from minimal.ar.any_subset import AnySubsetGPT
from minimal.data import Images
from minimal.recipes.start import digits, fit_averaged, pixel_tokenizer, shifted
from minimal.recipes.text import anywhere, pydoc, windows

Trained = tuple[nn.Module, dict[str, float]]
Held = tuple[Tensor, Tensor | None]  # tokens (B, N) and labels (B,)


def fit_subsets(model: AnySubsetGPT, batch: Callable[[int, torch.Generator], tuple], held_out: Held, **options):
    """Train on batches; keep the averaged weights that are best on `held_out`, with the same holes each time."""

    def nats(step: int) -> float:
        return model.loss(*held_out, generator=torch.Generator().manual_seed(0))[0].item()

    return fit_averaged(model, batch, nats, **options)


@processes.by_first
@torch.inference_mode()
def measured(model: AnySubsetGPT, held_out: Callable[[str], Held]) -> dict[str, float]:
    """Nats per token of whole examples in reading order, and per hidden token when a random half is known."""
    metrics, device = {}, model.levels.device
    for split in ("validation", "test"):
        tokens, labels = (None if part is None else part.to(device) for part in held_out(split))
        rank = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)).argsort(-1)
        for name, known in (("nothing", rank < 0), ("half", rank < tokens.shape[1] // 2)):
            logp = model.logprob(tokens, labels, known=known.to(device))
            metrics[f"{split}_nats_{name}_known"] = -logp.sum().item() / (~known).sum().item()
    return metrics


def fit_pixel_subsets(
    data: Callable[[str], Images],
    *,
    steps: int,
    lr: float = 3e-3,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    **options,
) -> tuple[AnySubsetGPT, Callable[[str], Held]]:
    """A model of the pixels of `data`, trained on shifted images, and what it was validated on."""
    torch.manual_seed(seed)
    train = data("train")
    encode = pixel_tokenizer(train).encode
    _, height, width = train.image_shape
    sizes = dict(grid_width=width, dim=96, layers=4, dropout=0.2)
    model = AnySubsetGPT(17, height * width, train.num_classes, **sizes).to(device)

    def held_out(split: str) -> Held:
        return encode(data(split).images).to(device), data(split).labels.to(device)

    schedule = dict(steps=steps, lr=lr, batch_size=batch_size, seed=seed, desc="any subset of pixels")
    fit_subsets(model, shifted(train, encode, device), held_out("validation"), **schedule, **options)
    return model, held_out


def digits_any_subset(steps: int = 3000, **options) -> Trained:
    """The pixels of the digits, 0.45 M parameters: as large as `digits_ar`."""
    model, held_out = fit_pixel_subsets(digits, steps=steps, **options)
    return model, measured(model, held_out)


def pydoc_any_subset(steps: int = 3000, seed: int = 0, device: str = "cpu", **options) -> Trained:
    """Windows of the characters of `pydoc`, 0.8 M parameters."""
    torch.manual_seed(seed)
    train, length = pydoc("train"), 64
    model = AnySubsetGPT(len(train.vocabulary), length, dim=128, layers=4, dropout=0.1).to(device)

    def batch(batch_size: int, generator: torch.Generator) -> tuple[Tensor]:
        return (anywhere(train.tokens, batch_size, length, generator).to(device),)

    def held_out(split: str) -> Held:
        return windows(pydoc(split).tokens, length).to(device), None

    schedule = dict(steps=steps, lr=4e-3, batch_size=20, seed=seed, autocast=True, desc="any subset of characters")
    fit_subsets(model, batch, held_out("validation"), **schedule, **options)
    return model, measured(model, held_out)


RECIPES: dict[str, Callable[..., Trained]] = {
    "digits_any_subset": digits_any_subset,
    "pydoc_any_subset": pydoc_any_subset,
}
