"""From a checkpoint of tokens to pictures or text: which samplers can draw from it, and which tokenizer paints."""

import math
import os
from collections.abc import Callable

from torch import Tensor, nn

from minimal import checkpoints
from minimal.ar.any_subset import AnySubsetGPT
from minimal.ar.flex_scale import FlexScale
from minimal.ar.masked import MaskedTransformer
from minimal.data import Text, load
from minimal.samplers.any_subset import sample_any_subset
from minimal.samplers.cached import bounds, sample_cached, sample_uncached
from minimal.samplers.jacobi import sample_jacobi
from minimal.samplers.lookahead import sample_lookahead
from minimal.samplers.masked import sample_masked
from minimal.samplers.trace import Sample
from minimal.tokenizers.pixels import PixelTokenizer

TOKENIZERS = {  # whose tokens a generator of Part 2 writes
    "shapes_gpt": "shapes_vq",
    "scene_gpt": "shapes_vq",
    "shapes_axial": "shapes_vq",
    "shapes_nar": "shapes_vq",
    "shapes_maskgit": "shapes_vq",
    "shapes_any_order": "shapes_vq",
    "shapes_var": "shapes_multiscale",
    "shapes_var_sar": "shapes_multiscale",
    "shapes_flexvar": "shapes_flex",
}


def samplers_of(model: nn.Module) -> dict[str, Callable[..., Sample]]:
    """The samplers that draw from `model`, by name; the first is the one to take."""
    if isinstance(model, MaskedTransformer):
        return {"masked": sample_masked}
    if isinstance(model, AnySubsetGPT):
        return {"any_subset": sample_any_subset, "uncached": sample_uncached}
    samplers = {"cached": sample_cached, "uncached": sample_uncached}
    if len(bounds(model)) > model.length:  # one token a level
        samplers["jacobi"] = sample_jacobi
    if hasattr(model, "tree_logits"):
        samplers["lookahead"] = sample_lookahead
    return samplers


def painter(name: str, model: nn.Module, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """What turns tokens of the checkpoint `name` (n, N) into images.

    A generator of Part 2 has its tokenizer in `TOKENIZERS`, X_prior has X; any other writes square grey pixels.
    """
    stem = stem_of(name)
    if stem in TOKENIZERS or stem.endswith("_prior"):
        tokenizer = checkpoints.load(TOKENIZERS.get(stem, stem.removesuffix("_prior")), device)
    else:
        side = math.isqrt(model.length)
        tokenizer = PixelTokenizer(model.vocab_size, (1, side, side)).to(device)
    if isinstance(model, FlexScale):  # its last map is the picture
        return lambda tokens: tokenizer.decode(model.split(tokens)[-1])
    order = getattr(model, "order", None)
    return tokenizer.decode if order is None else lambda tokens: tokenizer.decode(tokens[:, order.argsort()])


def text_of(name: str) -> Text | None:
    """The text whose characters are the tokens of the checkpoint `name`, or None if it makes pictures."""
    return load("pydoc", "train") if stem_of(name).startswith("pydoc_") else None


def stem_of(name: str) -> str:
    return os.path.basename(name).removesuffix(".safetensors")
