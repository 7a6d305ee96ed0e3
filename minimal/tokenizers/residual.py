"""Residual VQ: quantize, subtract, and quantize what is left over (RQ-VAE, arXiv 2203.01941; SoundStream, 2107.03312).

One codebook with K codes cuts space into K cells. A second one, for the errors of the first, cuts each of those into K
again: D levels distinguish K^D vectors, and a search over D·K rows finds one. Each further code refines the sum of
those before it, so a cell can be shown after any number of them.

    r_0 = z,    k_j = argmin_i |r_(j-1) − e_i^(j)|²,    r_j = r_(j-1) − e_(k_j)^(j),    ẑ_j = Σ_(i≤j) e_(k_i)^(i)
    loss = |x − decode(z + sg(ẑ_D − z))|² + β/D Σ_j |z − sg(ẑ_j)|²

Codebooks are those of vq.py, moving averages of the leftovers that they serve: one for each level, or one for all.
Quantizer dropout shows the decoder a random ẑ_j in place of ẑ_D, for a share of the images: then it learns to paint
from fewer levels.

Shapes: latents z, sums ẑ (B, N, D) for N cells; tokens long (B, L) in order of level, here L = depth · N.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.processes import gathered
from minimal.tokenizers.checks import check_indices, check_vectors
from minimal.tokenizers.gradients import copied
from minimal.tokenizers.grid import GridTokenizer
from minimal.tokenizers.vq import VectorQuantizer


class ResidualQuantizer(nn.Module):
    """`depth` codebooks (K, D), or with `shared` a single one, each quantizing what the levels before left over.

    `dropout`: share of the images of a training batch of which only a random number of levels is shown.
    """

    def __init__(
        self,
        codebook_size: int = 32,
        dim: int = 8,
        depth: int = 4,
        shared: bool = False,
        dropout: float = 0.0,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        revive_below: float = 1.0,
    ):
        super().__init__()
        self.dim, self.vocab_size, self.depth = dim, codebook_size, depth
        self.dropout, self.commitment_weight = dropout, commitment_weight
        tables = 1 if shared else depth
        self.tables = nn.ModuleList(
            VectorQuantizer(codebook_size, dim, decay, revive_below=revive_below) for _ in range(tables)
        )

    def table(self, k: int) -> VectorQuantizer:
        """The codebook of level k."""
        return self.tables[k % len(self.tables)]

    # What a level sees, and what it adds. A pyramid (multiscale.py) changes these four.

    def sizes(self, grid: tuple[int, int]) -> list[int]:
        """How many tokens each level has."""
        return [grid[0] * grid[1]] * self.depth

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(B, L, ...) in order of level to one part per level."""
        return tokens.chunk(self.depth, dim=1)

    def down(self, rest: Tensor, k: int) -> Tensor:
        """The leftover (B, N, D) to the vectors that level k quantizes, one per token."""
        return rest

    def up(self, codes: Tensor, k: int) -> Tensor:
        """The codes of level k to what they add to all cells, (B, N, D)."""
        return codes

    # Tokens to sums

    def codes(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to the code of each, (B, L, D)."""
        return torch.cat([self.table(k).codes(part) for k, part in enumerate(self.split(tokens))], dim=1)

    def sums(self, codes: Tensor, upto: int | None = None) -> list[Tensor]:
        """Codes (B, L, D) to ẑ_1, ẑ_2, ..., each (B, N, D); only the first `upto` of them."""
        total, sums = 0.0, []
        for k, part in enumerate(self.split(codes)[:upto]):
            total = total + self.up(part, k)
            sums.append(total)
        return sums

    def accumulate(self, total: Tensor | float, indices: Tensor, k: int) -> Tensor:
        """One step of `sums`, for samplers: ẑ before level k = 0, 1, ... (at first 0.0) and its tokens to ẑ after."""
        if not 0 <= k < self.depth:
            raise ValueError(f"levels are numbered 0 to {self.depth - 1}; got k = {k}")
        check_indices(indices, self.vocab_size)
        return total + self.up(self.table(k).codes(indices), k)

    # Vectors to tokens

    def quantize(self, z: Tensor, learn: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Vectors (B, N, D) to indices and sums, one of each per level. With `learn`, codebooks follow."""
        total, rows, indices, sums = torch.zeros_like(z), [], [], []
        for k in range(self.depth):
            table, rest = self.table(k), z - total.detach()
            if learn and not table.ready:
                table.kmeans(gathered(rest.flatten(0, 1)))
            seen = self.down(rest, k)
            rows.append(seen.flatten(0, 1))
            indices.append(table.nearest(rows[k]).view(seen.shape[:-1]))
            total = total + self.up(table.codes(indices[k]), k)
            sums.append(total)
        if learn:
            self.learn(rows, indices)
        return indices, sums

    def learn(self, rows: list[Tensor], indices: list[Tensor]) -> None:
        """One step of the moving averages; a shared table sees the rows (M, D) of all levels at once."""
        rows, indices = [gathered(r) for r in rows], [gathered(i.flatten()) for i in indices]
        for k, table in enumerate(self.tables):
            mine = slice(k, None, len(self.tables))
            table.update(torch.cat(rows[mine]), torch.cat(indices[mine]))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (B, N, D) to: ẑ with the gradient of `z`, tokens (B, L), weighted loss. Learns in training mode."""
        check_vectors(z, self.dim)
        indices, sums = self.quantize(z.detach(), learn=self.training)
        shown = self.drop(sums) if self.training and self.dropout else sums[-1]
        return copied(z, shown), torch.cat(indices, dim=1), self.loss(z, sums)

    def loss(self, z: Tensor, sums: list[Tensor]) -> Tensor:
        """The commitment of `z` to its sums, averaged over levels."""
        return self.commitment_weight * sum(F.mse_loss(z, total.detach()) for total in sums) / self.depth

    def drop(self, sums: list[Tensor]) -> Tensor:
        """For a share of the images the sum after 1, 2, ... or all levels, each as likely; for the others the last."""
        B, device = len(sums[0]), sums[0].device
        level = torch.randint(self.depth, (B,), device=device)
        level = torch.where(torch.rand(B, device=device) < self.dropout, level, self.depth - 1)
        return torch.stack(sums)[level, torch.arange(B, device=device)]


class LevelTokenizer(GridTokenizer):
    """A grid tokenizer whose tokens come in levels: every level adds to all cells, and any first few make an image.

    `options` go to the quantizer.
    """

    quantizer_class = ResidualQuantizer

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        widths: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        **options,
    ):
        frame = dict(image_shape=image_shape, widths=widths, blocks=blocks, patch=patch)
        super().__init__(quantizer=self.quantizer_class(**options), **frame)
        self.config = frame | options
        sizes = torch.tensor(self.quantizer.sizes(self.grid))
        self.register_buffer("levels", torch.arange(len(sizes)).repeat_interleave(sizes), persistent=False)
        self.length = len(self.levels)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, L), in order of level."""
        return torch.cat(self.quantizer.quantize(self.latents(x))[0], dim=1)

    def partial_sums(self, tokens: Tensor, upto: int | None = None) -> list[Tensor]:
        """Tokens (B, L) to the sums after each level, (B, N, D) each; only of the first `upto` levels."""
        depth = self.quantizer.depth
        if upto is not None and not 1 <= upto <= depth:
            raise ValueError(f"upto counts levels, 1 to {depth}; got {upto}")
        return self.quantizer.sums(self.embed(tokens), upto)

    def decode(self, tokens: Tensor, upto: int | None = None) -> Tensor:
        """Tokens (B, L) to images (B, C, H, W), from the first `upto` levels."""
        return self.paint(self.partial_sums(tokens, upto)[-1])


class ResidualTokenizer(LevelTokenizer):
    """Images to `depth` codes per cell, each refining the one before, and back."""
