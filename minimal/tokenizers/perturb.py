"""Wrong codes on purpose: what a generator's mistakes do to the picture (RobustTok, arXiv 2503.08354; id `robusttok`).

A decoder is trained on the encoder's codes and used on a generator's, which are sometimes wrong, and then mostly by a
little. The paper imitates such mistakes: a share of the tokens moves to a code near by. In training this makes a
tokenizer robust; done to a finished one it measures how robust it is.

    k'_n = k_n with probability 1 − α,  else uniform among the δ codes nearest to e_(k_n), that one included

so (δ − 1)/δ · α of the tokens really change. Whether δ codes near by are a small mistake or a large one depends on how
many there are: δ is compared as a share of K.

Shapes: indices long (...), codes (K, D); tokens long (B, N) of any tokenizer with `embed`, `levels` and `vocab_size`.
"""

import torch
from torch import Tensor, nn

from minimal.tokenizers.checks import check_indices


def perturb_indices(
    indices: Tensor, codes: Tensor, alpha: float, delta: int, generator: torch.Generator | None = None
) -> Tensor:
    """Each index (...), with probability `alpha`, becomes one of the `delta` codes (K, D) nearest to its own."""
    size = len(codes)
    check_indices(indices, size)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the share of tokens to touch, 0 to 1; got {alpha}")
    if not 1 <= delta <= size:
        raise ValueError(f"delta counts codes, the nearest included: 1 to {size}; got {delta}")
    used, place = indices.cpu().unique(return_inverse=True)  # distances from the codes in use only
    codes = codes.detach().double().cpu()
    apart = torch.cdist(codes[used], codes, compute_mode="donot_use_mm_for_euclid_dist")
    apart[torch.arange(len(used)), used] = -1  # an equal code under another number comes after the code itself
    near = apart.topk(delta, largest=False).indices  # (used, δ)
    rank = torch.randint(delta, indices.shape, generator=generator)
    moved = torch.rand(indices.shape, generator=generator) < alpha
    return torch.where(moved, near[place, rank], indices.cpu()).to(indices.device)


@torch.no_grad()
def perturb_tokens(
    tokenizer: nn.Module, tokens: Tensor, alpha: float, delta: int, generator: torch.Generator | None = None
) -> Tensor:
    """The same for tokens (B, N) of any discrete tokenizer; each level has a table of codes of its own."""
    size, levels = tokenizer.vocab_size, tokenizer.levels
    if size is None:
        raise ValueError(f"{type(tokenizer).__name__} has no codes to confuse; its tokens are real numbers")
    out, every = tokens.clone(), torch.arange(size, device=tokens.device)
    for level in levels.unique().tolist():
        places = (levels == level).nonzero()[:, 0]
        table = torch.cat([code_at(tokenizer, part, places[0].item()) for part in every.split(1024)])
        out[:, places] = perturb_indices(tokens[:, places], table, alpha, delta, generator)
    return out


def code_at(tokenizer: nn.Module, indices: Tensor, place: int) -> Tensor:
    """What tokens `indices` (M,) stand for at one place of the sequence, (M, D)."""
    return tokenizer.embed(indices[:, None].expand(-1, len(tokenizer.levels)))[:, place]
