"""Recipe of Part 2's model of captions: the raster GPT on scenes of one to four objects, a sentence in front.

Same tokenizer, size and budget as the models of one object (autoregressive.py). A caption is 16 words out of 19, read
by the network that reads the picture; all words become "none" together when it is dropped. Positions cost arithmetic,
words as well as tokens, so the budget pays for fewer steps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minimal import checkpoints, processes
from minimal.ar.raster import RasterGPT
from minimal.data.frozen import SPLITS
from minimal.data.shapes import CAPTION_LENGTH, WORDS
from minimal.metrics import batched
from minimal.recipes.autoregressive import SIZE, Trained, fit_generator, nats_per_image
from minimal.recipes.tokenizers import scenes


def captioned(tokenizer: torch.nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens and captions (B, 16) of every split of the scenes."""
    parts = {split: scenes(split) for split in SPLITS}
    return {
        split: (batched(tokenizer.encode, part.images, 250).clone(), part.attributes["words"])
        for split, part in parts.items()
    }


def scene_gpt(seed: int = 0, **options) -> Trained:
    """The raster GPT on scenes: the words of the caption, then the 64 tokens of `shapes_vq`."""
    torch.manual_seed(seed)
    tokenizer = checkpoints.load("shapes_vq")
    codes = captioned(tokenizer)
    model = RasterGPT(
        tokenizer.vocab_size,
        tokenizer.length,
        len(WORDS),
        grid_width=tokenizer.grid[1],
        cond_length=CAPTION_LENGTH,
        **SIZE,
    )
    fit_generator(model, codes, seed=seed, desc="raster GPT with captions", **options)
    return model, nats_per_image(model, codes) | without_caption(model, codes)


@processes.by_first
@torch.inference_mode()
def without_caption(model: RasterGPT, codes: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Nats per validation image for a model that is told nothing, and for one that is told another image's caption."""
    tokens, captions = (part.to(model.levels.device) for part in codes["validation"])
    told = {"none": [None] * 4, "another": captions.roll(1, 0).split(250)}
    return {
        f"validation_nats_per_image_{name}": -torch.cat(
            [model.logprob(part, caption) for part, caption in zip(tokens.split(250), conds)]
        )
        .mean()
        .item()
        for name, conds in told.items()
    }


RECIPES: dict[str, Callable[..., Trained]] = {"scene_gpt": scene_gpt}
