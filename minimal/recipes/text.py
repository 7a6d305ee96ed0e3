"""Recipes of Part 5a: character models of `pydoc`, a target that needs its context, and its draft.

Both read windows of 288 characters, drawn anywhere in the text: a prompt of up to 32 and 256 to come.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimal import processes
from minimal.ar.raster import RasterGPT
from minimal.data import Text, load
from minimal.nn.token_model import TokenModel
from minimal.recipes.start import fit_averaged

Trained = tuple[nn.Module, dict[str, float]]
LENGTH = 288


def pydoc(split: str) -> Text:
    return load("pydoc", split)


def text_gpt(data: Text, dim: int = 96, layers: int = 8, heads: int = 4, dropout: float = 0.25) -> RasterGPT:
    """An untrained model of the characters of `data`."""
    return RasterGPT(len(data.vocabulary), LENGTH, dim=dim, layers=layers, heads=heads, dropout=dropout)


def windows(tokens: Tensor, length: int = LENGTH) -> Tensor:
    """A text (T,) cut into windows (T // length, length) that do not overlap."""
    return tokens[: len(tokens) // length * length].view(-1, length)


def anywhere(tokens: Tensor, n: int, length: int, generator: torch.Generator) -> Tensor:
    """`n` windows (n, length) that begin anywhere in a text (T,)."""
    start = torch.randint(len(tokens) - length + 1, (n, 1), generator=generator)
    return tokens[start + torch.arange(length)]


def fit_text(
    model: TokenModel,
    data: Callable[[str], Text],
    *,
    steps: int,
    lr: float = 4e-3,
    batch_size: int = 20,
    seed: int = 0,
    device: str = "cpu",
    **options,
):
    """Train on windows from anywhere in the text; keep the averaged weights that are best on validation."""
    train, held_out = data("train").tokens, windows(data("validation").tokens, model.length).to(device)
    model.to(device)

    def batch(batch_size: int, generator: torch.Generator) -> tuple[Tensor]:
        return (anywhere(train, batch_size, model.length, generator).to(device),)

    return fit_averaged(
        model,
        batch,
        lambda step: nats_per_character(model, held_out),
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        **options,
    )


@torch.inference_mode()
def nats_per_character(model: TokenModel, held_out: Tensor) -> float:
    """Mean negative log-likelihood of a character of the windows (B, N)."""
    return -torch.cat([model.logprob(part) for part in held_out.split(50)]).mean().item() / held_out.shape[1]


@processes.by_first
def measured(model: TokenModel) -> dict[str, float]:
    device = model.levels.device
    return {
        f"{split}_nats_per_character": nats_per_character(model, windows(pydoc(split).tokens).to(device))
        for split in ("validation", "test")
    }


def pydoc_ar(steps: int = 1600, **options) -> Trained:
    """The target: eight narrow layers, 0.9 M parameters."""
    return train_text(text_gpt, steps=steps, **options)


def pydoc_draft(steps: int = 3000, **options) -> Trained:
    """Its draft: one layer."""
    return train_text(lambda data: text_gpt(data, dim=128, layers=1, dropout=0.0), steps=steps, **options)


def train_text(build: Callable[[Text], RasterGPT], seed: int = 0, **options) -> Trained:
    torch.manual_seed(seed)
    model = build(pydoc("train"))
    fit_text(model, pydoc, seed=seed, autocast=True, desc="characters", **options)  # bfloat16 was faster: 0.75x
    return model, measured(model)


RECIPES: dict[str, Callable[..., Trained]] = {
    "pydoc_ar": pydoc_ar,
    "pydoc_draft": pydoc_draft,
}
