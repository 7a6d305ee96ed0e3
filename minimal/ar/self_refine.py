"""SAR: train a model on what it predicts itself (Self-Autoregressive Refinement, 2512.06421; id `sar`).

In training a model reads true tokens, when sampling its own: it has never seen its own mistakes (exposure bias). A
rollout in training would cost a forward per level. But row j of `logits` reads earlier levels only, so one more forward
over the predictions of the first shows every level what would have been predicted before it (stagger-scale rollout):

    pass 1    z  = logits(x, c)     L_TF = CE(z, x)
              x̂  = argmax z, or a draw from softmax(z / T); no gradient
    pass 2    z' = logits(x̂, c)     L_SF = CE(z', x̂), over all levels but the first, which reads no tokens
    loss      L_TF + σ L_SF

The second target is the first pass's prediction, not the truth ("contrastive student forcing"): x continues x, and the
picture in x̂ may be another one. `target="truth"` is the student forcing that this argues against. A model whose inputs
are sums over scales, as VAR's, makes those sums from x̂ itself, so pass 2 reads the picture that x̂ is a pyramid of.

The older remedy costs no second forward: read tokens of which a share was replaced, predict the clean ones.

Shapes: tokens x (B, N) long in order of generation, labels c (B,), logits (B, N, V).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minimal.nn.labels import drop_labels
from minimal.nn.token_model import TokenModel, cross_entropy

TARGETS = ("prediction", "truth")


class SelfRefinement:
    """The step of `fit` for SAR: `step_fn=SelfRefinement(model, weight)`, with σ = `weight`.

    The paper's weights lie between 0.01 and 0.5, and it starts from a trained model. `temperature` 0 predicts by
    argmax, as the released code does. Logs are L_TF and L_SF in nats per token.
    """

    def __init__(self, model: TokenModel, weight: float = 0.1, target: str = "prediction", temperature: float = 0.0):
        if not weight >= 0:
            raise ValueError(f"the weight of student forcing is {weight}; give 0 (none) or a positive number")
        if target not in TARGETS:
            raise ValueError(f"target is {target!r}; it is one of {', '.join(TARGETS)}")
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}; give 0 for the argmax or a positive number")
        self.model, self.weight, self.target, self.temperature = model, weight, target, temperature

    def __call__(self, batch: tuple[Tensor, ...], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, cond = checked(self.model, batch)
        logits = self.model.logits(tokens, cond)
        teacher = cross_entropy(logits, tokens)
        predicted = predict(logits, self.temperature)
        later = self.model.levels > self.model.levels[0]
        again = self.model.logits(predicted, cond)  # the same labels: what was dropped stays dropped
        target = predicted if self.target == "prediction" else tokens
        student = cross_entropy(again[:, later], target[:, later])
        loss = teacher + self.weight * student
        return loss, {"teacher_forced": teacher.detach(), "student_forced": student.detach()}


class InputNoise:
    """The step of `fit` that predicts clean tokens from `corrupt(tokens)` (B, N), say `partial(replaced, ..)`."""

    def __init__(self, model: TokenModel, corrupt: Callable[[Tensor], Tensor]):
        self.model, self.corrupt = model, corrupt

    def __call__(self, batch: tuple[Tensor, ...], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, cond = checked(self.model, batch)
        read = self.corrupt(tokens)
        self.model.check(read)
        loss = cross_entropy(self.model.logits(read, cond), tokens)
        return loss, {"nats_per_token": loss.detach()}


@torch.no_grad()
def predict(logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Tokens (B, N) from logits (B, N, V), every row for itself: argmax, or a draw by the Gumbel trick."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    u = torch.rand(logits.shape, generator=generator, device=logits.device)
    return (logits / temperature - (-u.clamp(min=1e-20).log()).log()).argmax(-1)


def replaced(tokens: Tensor, share: float, vocab_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Each token (B, N), with probability `share`, becomes any token at all.

    Where codes have neighbours, `perturb_indices` of tokenizers/perturb.py makes smaller mistakes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is the part of the tokens to replace, 0 to 1; got {share}")
    other = torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)
    moved = torch.rand(tokens.shape, generator=generator).to(tokens.device) < share
    return torch.where(moved, other, tokens)


def checked(model: TokenModel, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    """Tokens and labels of a batch; in training mode with labels dropped, as `model.loss` does."""
    tokens, cond = (*batch, None)[:2]
    model.check(tokens, cond)
    return tokens, drop_labels(cond, model.label_dropout, model.num_classes) if model.training else cond
