"""The number of tokens is the resolution (DetailFlow's tokenizer, arXiv 2505.21473; id `detailflow`).

Nested dropout asks a prefix for the whole image, which it cannot give. DetailFlow asks the first t tokens for the
image at the resolution R(t) only, so early tokens carry layout and later ones detail, by construction. Tokens come in
groups that a generator emits at once; the first group comes one by one, since all others build on it.

    R(t) = ⌊R_max − (R_max − 1) ((N − t) / (N − 1))^1.5⌋,     loss = |paint(q_1..q_t) − up(down(x, R(t)))|²

Self-correction: a generator will draw a wrong token. So in training the codes of one group are replaced by neighbours
in the codebook, the tokens so far are fed back to the encoder in place of its queries, and learned *refine* queries
behind them read the later tokens anew, from an image and a prefix that does not quite fit it.

Unlike the paper's, the decoder always paints at full size, half of the images are cut short instead of a fifth, the
correction is learned on half of each batch, and the loss is the squared error alone.

Shapes: images (B, C, H, W); tokens long (B, N); lengths long (B,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimal.nn.module import arguments
from minimal.tokenizers.nested import Law, draw
from minimal.tokenizers.one_d import QueryTokenizer


def resolution(t: int, length: int, largest: int, power: float = 1.5) -> int:
    """R(t): pixels a side that the first `t` of `length` tokens answer for, 1 for one token, `largest` for all."""
    if not 1 <= t <= length or length < 2:
        raise ValueError(f"1 to {length} tokens, of at least 2, have a resolution; got {t}")
    return int(largest - (largest - 1) * ((length - t) / (length - 1)) ** power)


def degraded(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) shrunk to `size` pixels a side by taking means, and enlarged again."""
    small = F.interpolate(x, size, mode="area")
    return F.interpolate(small, x.shape[-2:], mode="bilinear") if size < x.shape[-1] else x


def group_levels(length: int, group: int) -> Tensor:
    """The step in which each token is made, (length,): 0, 1, .., g − 1 in the first group, then one for each group."""
    if length % group:
        raise ValueError(f"{length} tokens do not divide into groups of {group}")
    place = torch.arange(length)
    return torch.where(place < group, place, group - 1 + place // group)


def boundaries(levels: Tensor) -> list[int]:
    """The lengths at which a step ends: 1, 2, .., g, 2g, .., N."""
    return (1 + torch.arange(len(levels))[levels != F.pad(levels[1:], (0, 1), value=-1)]).tolist()


def truncated(levels: Tensor, share: float) -> Law:
    """All tokens, but for a `share` of the images a uniform length, rounded up to the end of its step."""
    law, last = [0.0] * len(levels), 0
    for end in boundaries(levels):
        law[end - 1], last = share * (end - last) / len(levels), end
    law[-1] += 1 - share
    return tuple(law)


class DetailFlowTokenizer(QueryTokenizer):
    """`share` of the images are cut short; `neighbours`: how many of the nearest codes a wrong one is drawn from.

    `network`: dim, patch, width, layers and heads of the query tokenizer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        length: int = 16,
        group: int = 4,
        codebook_size: int = 256,
        share: float = 0.5,
        neighbours: int = 16,
        **network: int,
    ):
        config = arguments(locals())
        levels = group_levels(length, group)
        law = truncated(levels, share)
        super().__init__(image_shape, length, law, levels, codebook_size, **network)
        self.config = config | config.pop("network")
        self.group, self.neighbours = group, neighbours
        self.refine = nn.Parameter(torch.randn_like(self.queries) / 4)
        self.again = nn.Linear(self.quantizer.dim, self.write.out_features)  # codes to queries

    def target(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Images (B, C, H, W), each at the resolution of its length (B,)."""
        shown = torch.empty_like(x)
        for t in lengths.unique().tolist():
            rows = lengths == t
            shown[rows] = degraded(x[rows], resolution(t, self.length, x.shape[-1]))
        return shown

    def loss(self, x: Tensor) -> tuple[Tensor, dict]:
        """The error against the degraded image, and that of half of the images after a wrong group was corrected."""
        lengths = draw(self.law, len(x), x.device)
        z = self.latents(x)
        q, aux_loss = self.quantize(z, self.first(lengths))
        mse = F.mse_loss(self.paint(q, lengths), self.target(x, lengths))

        half = x[: len(x) // 2]
        tokens = self.quantizer.nearest(z[: len(half)].detach())
        starts = self.group * torch.randint(self.length // self.group - 1, (len(half),), device=x.device)
        wrong = self.perturb(tokens, starts)
        clean = self.first(starts + self.group)
        again, again_loss = self.quantize(self.second_look(half, wrong, starts), ~clean)
        again = torch.where(clean[..., None], self.quantizer.codes(wrong), again)
        correction = F.mse_loss(self.paint(again, torch.full_like(starts, self.length)), half)
        logs = {"mse": mse.detach(), "correction": correction.detach(), "aux_loss": aux_loss.detach()}
        return mse + aux_loss + (correction + again_loss) / 2, logs

    # Self-correction

    def perturb(self, tokens: Tensor, starts: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Tokens (B, N) with those of the group from `starts` (B,) on replaced by random neighbours in the codebook."""
        codebook = self.quantizer.codes(torch.arange(self.vocab_size, device=tokens.device))
        near = torch.cdist(codebook, codebook).topk(self.neighbours + 1, largest=False).indices[:, 1:]  # not itself
        choice = torch.randint(self.neighbours, tokens.shape, device=tokens.device, generator=generator)
        noisy = near[tokens].gather(-1, choice[..., None])[..., 0]
        group = self.first(starts + self.group) & ~self.first(starts)
        return torch.where(group, noisy, tokens)

    def second_look(self, x: Tensor, tokens: Tensor, starts: Tensor) -> Tensor:
        """Latents (B, N, D) of a second pass in which tokens up to the group at `starts` stand in for its queries."""
        known = self.again(self.quantizer.codes(tokens).detach()) + self.queries[: self.length]
        known = torch.where(self.first(starts + self.group)[..., None], known, self.refine)
        return self.standardized(self.answers(x, known))

    def correct(self, x: Tensor, tokens: Tensor, starts: Tensor) -> Tensor:
        """Tokens (B, N) of `x` with those behind the group at `starts` (B,) read anew, given the ones before."""
        fresh = self.quantizer.nearest(self.second_look(x, tokens, starts))
        return torch.where(self.first(starts + self.group), tokens, fresh)
