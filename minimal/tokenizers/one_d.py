"""One-dimensional tokens: words for the whole image, in a row, without a place (TiTok, arXiv 2406.07550; id `titok`).

Learned queries stand beside the patches of the image in one transformer. What the queries have gathered there is
quantized, the patches are thrown away, and a second transformer paints the image from the codes and blank patches.
With nested dropout (nested.py) the codes are ordered, and any first few of them make an image.

    z = read(encoder([patches; queries])),    q = quantize(z),    x̂ = paint(decoder([codes_1..k; blank patches]))

Who sees whom in the encoder follows from `levels`: patches see patches, a query sees patches and the queries that
are not after it. So the first k tokens are the same however many follow, and may be read alone. TiTok itself has no
order, hence one level for all: everybody sees everybody, patches the queries too.

Attention that starts from nothing takes long to find out where things are. So, unlike TiTok's, a query starts from a
learned mixture of all patches, a blank patch from one of all codes: at first the whole is close to a linear
autoencoder (GigaTok, arXiv 2504.08736, starts its queries from averages of the grid). And what a query answers is
standardised over the batch before it is quantized, where TiTok has unit vectors.

Shapes: images (B, C, H, W); n patches of p x p pixels; latents z, q (B, N, D); tokens long (B, N).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal import processes
from minimal.nn.blocks import Block
from minimal.nn.masks import not_after
from minimal.nn.module import arguments
from minimal.tokenizers.checks import check_images, check_indices
from minimal.tokenizers.nested import Law, draw
from minimal.tokenizers.vq import VectorQuantizer


class QueryTokenizer(nn.Module):
    """Images to tokens, and back from any first few of them. `levels`: one for each query.

    `law` is over the lengths 1 .. M. Queries beyond the first `length` are ReToK's redundant ones: they exist in
    training only, where they take a share of the cuts.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        length: int,
        law: Law,
        levels: Tensor,
        codebook_size: int = 256,
        dim: int = 4,
        patch: int = 8,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
    ):
        super().__init__()
        channels, height, across = self.image_shape = tuple(image_shape)
        if height % patch or across % patch:
            raise ValueError(f"{height} x {across} pixels do not divide into patches of {patch}")
        if not 1 <= length <= len(law) == len(levels):
            raise ValueError(f"{length} tokens need as many lengths or more; law {len(law)}, levels {len(levels)}")
        self.length, self.law, self.patch = length, law, patch
        self.grid = (height // patch, across // patch)
        n, queries = self.grid[0] * self.grid[1], len(law)
        self.register_buffer("levels", levels[:length], persistent=False)
        everybody = torch.cat((torch.full((n,), -1 if levels.any() else 0), levels))  # patches come first
        self.register_buffer("mask", not_after.square(everybody), persistent=False)

        self.look = nn.Linear(channels * patch**2, width)
        self.patch_places = nn.Parameter(torch.randn(n, width) / 4)
        self.queries = nn.Parameter(torch.randn(queries, width) / 4)
        self.gather = nn.Linear(n, queries, bias=False)
        self.encoder = nn.ModuleList(Block(width, heads, hidden=2 * width) for _ in range(layers))
        self.read = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, dim))
        self.register_buffer("mean", torch.zeros(queries * dim))
        self.register_buffer("variance", torch.ones(queries * dim))

        self.quantizer = VectorQuantizer(codebook_size, dim)

        self.write = nn.Linear(dim, width)
        self.absent = nn.Parameter(torch.randn(width) / 4)  # stands for a token that was cut off
        self.token_places = nn.Parameter(torch.randn(queries, width) / 4)
        self.blanks = nn.Parameter(torch.randn(n, width) / 4)
        self.scatter = nn.Linear(queries, n, bias=False)
        self.decoder = nn.ModuleList(Block(width, heads, hidden=2 * width) for _ in range(layers))
        self.show = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 4 * patch**2))
        self.smooth = nn.Conv2d(4, channels, 3, padding=1)  # across the borders of patches

    @property
    def vocab_size(self) -> int:
        return self.quantizer.vocab_size

    # Images to tokens

    def latents(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to one vector per query, (B, M', D); by default for the `length` queries that stay."""
        queries = self.queries[: self.length] if queries is None else queries
        return self.standardized(self.answers(x, queries), learn=self.training)

    def answers(self, x: Tensor, queries: Tensor) -> Tensor:
        """What the encoder makes of `queries` (M', W) or (B, M', W) beside the patches of `x`: (B, M', D)."""
        check_images(x, self.image_shape)
        h = self.look(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.patch_places
        n, count = h.shape[1], queries.shape[-2]
        h = torch.cat((h, queries + self.gather(h.mT).mT[:, :count]), 1)
        mask = self.mask[: n + count, : n + count]
        for block in self.encoder:
            h = block(h, mask=mask)
        return self.read(h[:, n:])

    def standardized(self, z: Tensor, learn: bool = False) -> Tensor:
        """Vectors (B, M', D), each coordinate of each query at mean 0, variance 1: the batch's, or running ones.

        All queries share a codebook. What a query says of every image alike would use up codes and tell nothing.
        """
        if learn and processes.count() > 1:
            raise ValueError("statistics of the whole batch need the whole batch: train this tokenizer in one process")
        own = slice(z.shape[1] * z.shape[2])
        return F.batch_norm(z.flatten(1), self.mean[own], self.variance[own], training=learn).view(z.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N)."""
        return self.quantizer.nearest(self.latents(x))

    # Tokens to images

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, k), k of at most N, to codes (B, k, D)."""
        if tokens.ndim != 2 or not tokens.shape[1] <= self.length:
            raise ValueError(f"tokens must be (B, k) with k at most {self.length}, got {tuple(tokens.shape)}")
        check_indices(tokens, self.vocab_size)
        return self.quantizer.codes(tokens)

    def decode(self, tokens: Tensor, upto: int | None = None) -> Tensor:
        """Tokens (B, N) to images (B, C, H, W); only from the first `upto` of them."""
        q = self.embed(tokens)[:, :upto]
        return self.paint(q, q.new_full((len(q),), q.shape[1], dtype=torch.long))

    def paint(self, q: Tensor, lengths: Tensor) -> Tensor:
        """Codes (B, M', D), of which the first `lengths` (B,) of each image count, to images (B, C, H, W)."""
        q = F.pad(q, (0, 0, 0, len(self.law) - q.shape[1]))
        there = self.first(lengths)
        h = torch.where(there[..., None], self.write(q), self.absent) + self.token_places
        h = torch.cat((h, self.blanks + self.scatter(h.mT).mT), 1)
        for block in self.decoder:
            h = block(h)
        h = self.show(h[:, len(self.law) :]).mT.unflatten(-1, self.grid)
        return self.smooth(F.pixel_shuffle(h, self.patch))

    def first(self, lengths: Tensor) -> Tensor:
        """Which of the M tokens are among the first `lengths` (B,): (B, M)."""
        return torch.arange(len(self.law), device=lengths.device) < lengths[:, None]

    # Training

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """The error of images from a random number of tokens, and the commitment of the tokens that were shown."""
        lengths = draw(self.law, len(x), x.device)
        q, aux_loss = self.quantize(self.latents(x, self.queries), self.first(lengths))
        mse = F.mse_loss(self.paint(q, lengths), x)
        return mse + aux_loss, {"mse": mse.detach(), "aux_loss": aux_loss.detach()}

    def quantize(self, z: Tensor, shown: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, M, D) to codes, zero where not `shown` (B, M); the codebook sees and serves the others only."""
        rows, _, aux_loss = self.quantizer(z[shown].float())
        return torch.zeros_like(z, dtype=rows.dtype).masked_scatter(shown[..., None], rows), aux_loss


class OneDTokenizer(QueryTokenizer):
    """`length` tokens. Without a law they are TiTok's, all needed and in no order; with one they are nested.

    `network`: dim, patch, width, layers and heads of the above.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        length: int = 32,
        law: Law | None = None,
        codebook_size: int = 256,
        **network: int,
    ):
        config = arguments(locals())
        order = torch.zeros(length, dtype=torch.long) if law is None else torch.arange(len(law))
        law = (0.0,) * (length - 1) + (1.0,) if law is None else tuple(law)
        super().__init__(image_shape, length, law, order, codebook_size, **network)
        self.config = config | config.pop("network")
