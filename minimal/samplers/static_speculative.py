"""Speculative sampling in which the host never waits for the device (2211.17192; id `cuda-graphs`).

How many guesses of a round are kept is known on the device only, and every row has its own number. `sample_speculative`
reads it back in each round, so the device idles while the host thinks. Here a round has fixed shapes, k guesses and one
verification, and the count stays where it is made:

    kept = cumprod(accepted).sum()        length += kept + 1        caches are truncated to `length`

A whole round is one CUDA graph. Rows that are done go on idly, in the k + 1 spare places behind the end of the canvas.
The host looks at the lengths only when all rows could be done: a round writes at most k + 1 tokens, so while the
shortest row lacks r tokens, the next ceil(r / (k + 1)) rounds are needed whatever happens. No round is wasted.
"""

import torch
from torch import Tensor, nn

from minimal.nn.cache import StaticKVCache
from minimal.samplers.cached import finished, new_canvas
from minimal.samplers.cuda_graph import check_conditional, record
from minimal.samplers.logits import inverse_cdf, probabilities, uniform_noise
from minimal.samplers.speculative import check_pair, verify
from minimal.samplers.trace import Sample, Trace


class StaticSpeculator:
    """The state of `n` samples of `model`, and the round that advances each by 1 to k + 1 tokens.

    `filters` apply to both networks and are part of the recorded round; `cond`, prompt and noise may change from one
    call of `sample` to the next.
    """

    def __init__(self, model: nn.Module, draft: nn.Module, n: int, *, k: int = 4, conditional: bool = True, **filters):
        check_pair(model, draft, k)
        self.model, self.draft, self.n, self.k, self.filters = model, draft, n, k, filters
        self.canvas, _ = new_canvas(model, n, spare=k + 1, **filters)
        width, device = self.canvas.shape[1], self.canvas.device
        self.cond = torch.zeros(n, dtype=torch.long, device=device) if conditional else None
        self.noise = torch.zeros(n, width, 3, device=device)  # for each position: draft, coin, repair
        self.length = torch.zeros(n, dtype=torch.long, device=device)
        self.counts = torch.zeros(3, dtype=torch.long, device=device)  # rows at work, guesses decided on, guesses kept
        self.caches = [net.new_cache(n, width, StaticKVCache) for net in (model, draft)]
        self.row, self.ahead = torch.arange(n, device=device)[:, None], torch.arange(k + 1, device=device)
        self.graph = record(self.round, lambda: self.rewind(1)) if device.type == "cuda" else None

    def round(self, lacks: tuple[int, int] = (0, 1)) -> None:
        """Guess k tokens and verify them.

        `lacks`: how many positions before the next one the caches of target and draft have not seen. The draft never
        sees its last guess, so it lacks one. Only the first round, which reads the prompt, is of another shape.
        """
        k, N, (target_cache, draft_cache) = self.k, self.model.length, self.caches
        window = self.length[:, None] + self.ahead  # (n, k + 1): positions that this round may fill
        u_draft, coins, repair = self.noise[self.row, window].unbind(-1)
        q = []
        for i in range(k):
            new = lacks[1] + 1 if i == 0 else 1
            logits = self.draft.logits(self.canvas, self.cond, cache=draft_cache, n=new)[:, -1]
            q.append(probabilities(logits, **self.filters))
            self.canvas.scatter_(1, window[:, i : i + 1], inverse_cdf(q[i], u_draft[:, i])[:, None])
        logits = self.model.logits(self.canvas, self.cond, cache=target_cache, n=lacks[0] + k + 1)[:, -k - 1 :]
        drafts = self.canvas.gather(1, window[:, :k])
        kept, token = verify(probabilities(logits, **self.filters), torch.stack(q, 1), drafts, coins[:, :k], repair)
        self.canvas.scatter_(1, (self.length + kept)[:, None], token[:, None])
        room = (N - self.length).clamp(max=k)  # guesses beyond the end do not count; a row that is done has no room
        self.counts += torch.stack((room.sign(), (kept + 1).minimum(room), kept.minimum(room))).sum(-1)
        self.length.copy_((self.length + kept + 1).clamp(max=N))
        target_cache.truncate(self.length)
        draft_cache.truncate(self.length - 1)

    def rewind(self, length: int) -> None:
        """As if `length` tokens were there and both networks had seen what they see before an ordinary round."""
        self.length.fill_(length)
        for cache, lack in zip(self.caches, (0, 1)):
            cache.truncate(max(length - lack, 0))

    @torch.inference_mode()
    def sample(
        self, *, cond: Tensor | None = None, prompt: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Sample:
        """Fill the canvas: the samples, and the trace, of `sample_speculative` with the same generator."""
        canvas, first = new_canvas(self.model, self.n, cond, prompt, spare=self.k + 1, **self.filters)
        self.draft.check(canvas[:, :first], cond)
        check_conditional(cond, self.cond)
        n, k, N = self.n, self.k, self.model.length
        self.noise.copy_(uniform_noise(n, self.noise.shape[1], generator, self.noise.device, numbers=3))
        self.canvas.copy_(canvas)
        if cond is not None:
            self.cond.copy_(cond)
        self.counts.zero_()
        self.rewind(0)
        self.length.fill_(first)  # the first round shows the prompt to both networks
        trace, rounds = Trace(), 0
        if first < N:
            self.round(lacks=(first, first))
            rounds = 1
        while left := N - int(self.length.min()):  # the only look
            for _ in range(-(-left // (k + 1))):
                self.graph.replay() if self.graph else self.round()
                rounds += 1
        rows, trace.drafted, trace.accepted = self.counts.tolist()
        trace.forwards.update(target=rounds, draft=k * rounds)
        trace.rows.update(target=rows, draft=k * rows)
        if rounds:
            positions = (k + 1) * rows + n * first
            trace.positions.update(target=positions, draft=positions - n)
        return finished(self.canvas, N, trace)
