"""For the tests of codes in levels: random tables, comparison up to rounding, and what must stay as it was."""

import contextlib

import torch


def filled(quantizer, shrink=1.0):
    """Random tables, each `shrink` times as large as the one before; in eval mode."""
    for k, table in enumerate(quantizer.tables):
        table.start(shrink**k * torch.randn_like(table.codebook))
    return quantizer.eval()


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@contextlib.contextmanager
def unchanged(module):
    """Weights and running averages are the same afterwards, to the bit."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    yield
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def follows(quantizer, z, sizes):
    """In one update the single table of `quantizer` counts the rows of all levels of `z`, and moves."""
    (table,) = quantizer.tables
    codebook, counts = table.codebook.clone(), table.counts.clone()
    indices, _ = quantizer.quantize(z, learn=True)
    assert [part.shape[1] for part in indices] == sizes
    hits = torch.cat(indices, dim=1).flatten().bincount(minlength=quantizer.vocab_size)
    same(table.counts, counts.lerp(hits.float(), 1 - table.decay))
    assert not torch.equal(table.codebook, codebook)


def passes_once(quantizer, z):
    """The gradient of what is shown reaches `z` once, as if nothing had been quantized."""
    z, weight = z.requires_grad_(), torch.randn_like(z)
    (quantizer(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight)
