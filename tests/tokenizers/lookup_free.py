"""For the tests of binary codes: the slow way over all of them, and agreement with the reference library."""

import torch


def enumerated(quantizer, u):
    """The two entropies by forming p(c | z) for every row and every code: (N, 2ᵇ)."""
    codes = quantizer.codes(torch.arange(quantizer.vocab_size)).to(u.dtype)
    p = (2 * quantizer.sharpness * u @ codes.mT).softmax(-1)
    return torch.special.entr(p).sum(-1).mean(), torch.special.entr(p.mean(0)).sum()


def agrees(ours, theirs, z, sharpness):
    q, indices, loss = ours(z)
    their_q, their_indices, their_loss = theirs(z, inv_temperature=sharpness)
    assert torch.equal(indices, their_indices.long())
    torch.testing.assert_close(q, their_q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, their_loss, rtol=1e-5, atol=1e-6)
    every = torch.arange(ours.vocab_size)
    torch.testing.assert_close(ours.codes(every), theirs.indices_to_codes(every[None])[0], rtol=0, atol=1e-6)
