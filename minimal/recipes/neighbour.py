"""Recipes of chapter 2.3: next neighbour and the Axial Transformer, on the tokens of the raster GPT."""

from collections.abc import Callable

import torch

from minimal import checkpoints
from minimal.ar.axial import AxialTransformer
from minimal.ar.neighbour import NextNeighbour
from minimal.recipes.autoregressive import SIZE, Trained, as_generated, coded, fit_generator, nats_per_image


def shapes_nar(seed: int = 0, **options) -> Trained:
    """Next neighbour: the 64 tokens of `shapes_vq` in 15 diagonals. Three blocks, and one more for the head below."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    model = NextNeighbour(tokenizer.vocab_size, tokenizer.grid, 16, **SIZE | {"layers": 3})
    order, place = model.order, model.order.argsort()
    codes = {split: (tokens[:, order], labels) for split, (tokens, labels) in coded(tokenizer).items()}
    fit_generator(model, codes, seed=seed, desc="next neighbour", **options)

    def paint(tokens: torch.Tensor) -> torch.Tensor:
        return tokenizer.decode(tokens.cpu()[:, place])

    return model, nats_per_image(model, codes) | as_generated(model, paint)


def shapes_axial(seed: int = 0, **options) -> Trained:
    """Axial Transformer: the 64 tokens of `shapes_vq` in raster order.

    Five blocks with narrower feed-forwards have as many weights as the four of the others.
    """
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    codes = coded(tokenizer)
    size = dict(dim=SIZE["dim"], heads=SIZE["heads"], dropout=SIZE["dropout"], hidden=256, pairs=2, inner=1)
    model = AxialTransformer(tokenizer.vocab_size, tokenizer.grid, 16, **size)
    fit_generator(model, codes, seed=seed, desc="axial", **options)
    return model, nats_per_image(model, codes) | as_generated(model, tokenizer.decode)


RECIPES: dict[str, Callable[..., Trained]] = {
    "shapes_nar": shapes_nar,
    "shapes_axial": shapes_axial,
}
