"""`minimal bench next_scale`: next-scale and raster generation with guidance, against their plain and uncached forms.

Both write an image of 16 x 16 cells with four layers of width 256 and 4,096 codes: VAR's ten scales in ten forwards
over 680 positions, the raster GPT in 256 forwards over one. The floor is the matrix products of the fast form, those of
attention too, on preallocated buffers. Weights are random: nothing here depends on what they say.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from minimal.ar.raster import RasterGPT
from minimal.ar.scale import NextScale
from minimal.nn.token_model import TokenModel
from minimal.samplers.cached import bounds, sample_cached, sample_uncached
from minimal.samplers.fast import FastRaster
from minimal.samplers.fast_scale import sample_next_scale
from minimal.samplers.guidance import Guided

SIZE = dict(dim=256, layers=4, heads=8)
CODES, CODE_DIM, CLASSES, GUIDANCE = 4096, 32, 16, 2.0
SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
TILE = 2**18
Race = Callable[..., dict[str, float]]


def next_scale(race: Race, device: str = "cpu", rounds: int = 3) -> None:
    """Print, for batches of 1 and 8, how fast each form is; `race` is that of bench.py."""
    for batch in (1, 8):
        for title, cases in jobs(batch, device).items():
            if title == "raster" and batch > 1:
                del cases["uncached"]  # a minute, and per image as slow as alone
            seconds = race(cases, rounds, device)
            print(f"\n{title + f', batch {batch}':28s} ms/image   x plain   of the floor")
            for name, value in seconds.items():
                print(
                    f"{name:28s} {value / batch * 1e3:8.1f}   {seconds['plain, cached'] / value:7.2f}   "
                    f"{seconds['floor: bare products'] / value:12.0%}"
                )
            if "uncached" in seconds:
                print(f"fast against uncached: {seconds['uncached'] / seconds['fast']:.1f} x")


def jobs(batch: int, device: str = "cpu") -> dict[str, dict[str, Callable[[], object]]]:
    """The forms of each way to generate `batch` images."""
    pyramid, raster = (model.to(device) for model in models())
    options = dict(cond=torch.arange(batch, device=device) % CLASSES)
    fast = {
        "next scale": partial(sample_next_scale, pyramid, batch, guidance_scale=GUIDANCE, **options),
        "raster": partial(sample_cached, Guided(FastRaster(raster), GUIDANCE), batch, **options),
    }
    floors = {
        "next scale": bare_products(pyramid, batch, head_rows=batch),
        "raster": bare_products(raster, batch, head_rows=2 * batch),
    }
    return {
        title: {
            "uncached": partial(sample_uncached, Guided(model, GUIDANCE), batch, **options),
            "plain, cached": partial(sample_cached, Guided(model, GUIDANCE), batch, **options),
            "fast": fast[title],
            "floor: bare products": floors[title],
        }
        for title, model in (("next scale", pyramid), ("raster", raster))
    }


def models() -> tuple[NextScale, RasterGPT]:
    """Weights so large that labels and earlier tokens decide what comes next, and no distribution is flat."""
    torch.manual_seed(0)
    pyramid = NextScale(CODES, CODE_DIM, SCALES, CLASSES, **SIZE).eval()
    raster = RasterGPT(CODES, SCALES[-1] ** 2, CLASSES, grid_width=SCALES[-1], **SIZE).eval()
    for model in (pyramid, raster):
        nn.init.normal_(model.head.weight, std=0.2)
    for modulation in (pyramid.modulation, pyramid.last_modulation):
        nn.init.normal_(modulation.linear.weight, std=0.2)
        nn.init.ones_(modulation.linear.bias)  # a gate of 0 would close its branch
    nn.init.normal_(pyramid.quantizer.table(0).codebook)
    return pyramid, raster


def bare_products(model: TokenModel, batch: int, head_rows: int) -> Callable[[], None]:
    """The matrix products of `batch` guided images, level by level, and nothing else."""
    weight, attention, ends = model.head.weight, model.blocks[0].attention, bounds(model)
    like, rows, H, d = dict(device=weight.device, dtype=weight.dtype), 2 * batch, attention.heads, attention.head_dim
    most = max(end - start for start, end in pairwise(ends))
    layers = [[packed(linear, rows * most) for linear in linears(block)] for block in model.blocks]
    head = packed(model.head, head_rows * most)
    keys = torch.randn(rows * H, ends[-1], d, **like)
    queries, out = torch.randn(rows * H, most, d, **like), torch.empty(rows * H, most, d, **like)
    # as many heads at a time as keep their scores in the processor's cache: the fastest way to do these products
    tiles = [min(rows * H, max(1, TILE // ((end - start) * end))) for start, end in pairwise(ends)]
    scores = [
        torch.empty(tile, end - start, end, **like) for tile, (start, end) in zip(tiles, pairwise(ends), strict=True)
    ]

    @torch.inference_mode()
    def run() -> None:
        for (start, end), tile, weights in zip(pairwise(ends), tiles, scores):
            new = end - start
            for qkv, *others in layers:
                product(*qkv, rows * new)
                for q, past, mixed in zip(queries.split(tile), keys.split(tile), out.split(tile)):
                    room = weights[: len(q)]
                    torch.bmm(q[:, :new], past[:, :end].mT, out=room)
                    torch.bmm(room, past[:, :end], out=mixed[:, :new])
                for other in others:
                    product(*other, rows * new)
            product(*head, head_rows * new)

    return run


def linears(block: nn.Module) -> tuple[nn.Linear, ...]:
    return block.attention.qkv, block.attention.out, block.feed_forward.gate_up, block.feed_forward.out


def packed(linear: nn.Linear, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Some input (rows, in), the weight as (in, out) and room for the product."""
    weight = linear.weight.detach().mT.contiguous()
    return weight.new_ones(rows, weight.shape[0]), weight, weight.new_empty(rows, weight.shape[1])


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, rows: int) -> None:
    torch.mm(x[:rows], weight, out=out[:rows])
