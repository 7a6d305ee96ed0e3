"""What FSQ, iFSQ, LFQ and BSQ share: codes that are computed, numbers that stay whole, clear errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from minimal import checkpoints
from minimal.tokenizers.bsq import BSQ, BSQTokenizer
from minimal.tokenizers.fsq import FSQ, FSQTokenizer
from minimal.tokenizers.ifsq import IFSQ, IFSQTokenizer
from minimal.tokenizers.lfq import LFQ, LFQTokenizer

SMALL = [
    FSQ((8, 5, 5, 5)),
    FSQ((2, 3, 4)),
    FSQ((255, 31)),
    FSQ((7, 3, 8, 11), "equal"),
    IFSQ((17,) * 4),
    LFQ(1),
    LFQ(10),
    LFQ(16),
    BSQ(7),
    BSQ(16),
]
LARGE = [FSQ((8,) * 20), FSQ((17,) * 15), FSQ((2,) * 62), IFSQ((17,) * 8), LFQ(18), LFQ(36), LFQ(62), BSQ(36)]
DTYPES = [torch.float32, torch.bfloat16]
FRAME = dict(image_shape=(3, 8, 4), widths=(8, 8))
TOKENIZERS = [
    lambda: FSQTokenizer(levels=(4, 3), **FRAME),
    lambda: IFSQTokenizer(levels=(5, 3), **FRAME),
    lambda: LFQTokenizer(bits=4, **FRAME),
    lambda: BSQTokenizer(bits=4, **FRAME),
]


def name(quantizer):
    return f"{type(quantizer).__name__}-{quantizer.vocab_size}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantizer", SMALL, ids=name)
def test_every_index_survives_the_round_trip(quantizer, dtype):
    indices = torch.arange(quantizer.vocab_size)
    codes = quantizer.codes(indices)
    assert codes.shape == (quantizer.vocab_size, quantizer.dim)
    back = quantizer.indices(codes.to(dtype))
    assert back.dtype == torch.long and torch.equal(back, indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantizer", LARGE, ids=name)
def test_so_do_random_and_the_last_indices_of_vocabularies_that_fit_no_memory(quantizer, dtype, generator):
    last = quantizer.vocab_size - 1
    drawn = torch.randint(quantizer.vocab_size, (1000,), generator=generator)
    indices = torch.cat([drawn, torch.tensor([0, last // 2, last - 1, last])])
    assert torch.equal(quantizer.indices(quantizer.codes(indices).to(dtype)), indices)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quantizer", SMALL + LARGE, ids=name)
def test_the_value_is_the_code_of_the_index(quantizer, dtype, generator):
    """To the last bit, in training too: what the decoder sees is what `codes` returns when tokens are decoded."""
    z = (3 * torch.randn(50, 4, quantizer.dim, generator=generator)).to(dtype).requires_grad_()
    q, indices, loss = quantizer(z)
    assert indices.shape == (50, 4) and indices.dtype == torch.long and q.dtype == dtype
    assert torch.equal(q, quantizer.codes(indices).to(dtype))
    assert torch.equal(indices, quantizer.nearest(z.flatten(0, 1)).view(50, 4))
    assert torch.equal(indices, quantizer.indices(q))
    (q.square().sum() + loss).backward()
    assert z.grad.isfinite().all() and z.grad.any()


@pytest.mark.parametrize("quantizer", SMALL + LARGE, ids=name)
@pytest.mark.parametrize("size", [0.0, 1e-30, 30.0, 1e30])
def test_extreme_vectors_have_indices_too(quantizer, size):
    z = size * torch.cat([torch.ones(1, quantizer.dim), -torch.ones(1, quantizer.dim)])
    q, indices, _ = quantizer(z)
    assert torch.equal(quantizer.codes(indices), q)  # raises if an index is out of range
    if size == 30.0:
        assert indices.tolist() == [quantizer.vocab_size - 1, 0]


@pytest.mark.parametrize("quantizer", SMALL, ids=name)
def test_the_mean_code_is_the_mean_of_all_codes(quantizer):
    mean = quantizer.codes(torch.arange(quantizer.vocab_size)).mean(0)
    torch.testing.assert_close(quantizer.mean_code(), mean, rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operator made."""

    elements = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.elements = max([self.elements, *(x.numel() for x in made if torch.is_tensor(x))])
        return result


@pytest.mark.parametrize(
    "build",
    [lambda: FSQ((17,) * 15), lambda: IFSQ((17,) * 8), lambda: LFQ(18), lambda: LFQ(62), lambda: BSQ(36)],
    ids=["FSQ-17^15", "IFSQ-17^8", "LFQ-18", "LFQ-62", "BSQ-36"],
)
def test_no_large_codebook_is_ever_formed(build):
    z = torch.randn(2000, 62)
    with Largest() as largest:
        quantizer = build()
        z = z[:, : quantizer.dim].clone().requires_grad_()
        q, indices, loss = quantizer(z)
        (q.sum() + loss).backward()
        quantizer.codes(indices)
        quantizer.mean_code()
    assert largest.elements <= 2000 * 512 < 2**20


@given(levels=st.lists(st.integers(2, 40), min_size=1, max_size=6), bins=st.sampled_from(["endpoint", "equal"]))
def test_any_levels_are_a_bijection_and_all_of_them_are_reached(levels, bins):
    odd = [level // 2 * 2 + 1 for level in levels]
    for quantizer in (FSQ(levels, bins), IFSQ(odd, bins)):
        levels = quantizer.levels.tolist()
        assert quantizer.vocab_size == math.prod(levels)
        indices = torch.randint(quantizer.vocab_size, (200,))
        assert torch.equal(quantizer.indices(quantizer.codes(indices)), indices)
        z = torch.linspace(-8, 8, 4001)[:, None].expand(-1, len(levels))
        q = quantizer(z)[0]
        assert [len(column.unique()) for column in q.mT] == levels
        assert (q.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("build", TOKENIZERS)
def test_tokenizers_keep_the_shapes_and_survive_a_checkpoint(build, tmp_path):
    torch.manual_seed(0)
    model, x = build().eval(), torch.rand(2, 3, 8, 4) * 2 - 1
    tokens = model.encode(x)
    assert tokens.shape == (2, 8) and tokens.dtype == torch.long
    assert model.decode(tokens).shape == x.shape
    torch.testing.assert_close(model.decode(tokens), model.paint(model.quantizer(model.latents(x))[0]))
    checkpoints.save(model, tmp_path / "toy.safetensors", half=False)
    again = checkpoints.load(tmp_path / "toy.safetensors")
    assert torch.equal(again.encode(x), tokens) and torch.equal(again.decode(tokens), model.decode(tokens))
    assert not [name for name in model.state_dict() if name.startswith("quantizer")]  # no codebook is stored


@pytest.mark.parametrize("build, quantizer", zip(TOKENIZERS, (FSQ, IFSQ, LFQ, BSQ)))
def test_each_tokenizer_has_its_own_quantizer_with_its_own_defaults(build, quantizer):
    model = build()
    assert type(model.quantizer) is quantizer
    assert model.config.items() >= FRAME.items()
    if isinstance(model.quantizer, FSQ):
        assert model.quantizer.bins == model.config["bins"] == ("equal" if quantizer is IFSQ else "endpoint")
    else:
        assert model.quantizer.scale == (0.5 if quantizer is BSQ else 1.0)  # 1 / √4
        assert model.config["entropy_weight"] == model.quantizer.entropy_weight == 0.1


@pytest.mark.parametrize("build", TOKENIZERS)
def test_the_whole_tokenizer_gets_a_gradient(build):
    model, x = build(), torch.rand(2, 3, 8, 4) * 2 - 1
    loss, logs = model.loss(x)
    loss.backward()
    for network in (model.encoder, model.decoder):
        assert any(p.grad.abs().sum() > 0 for p in network.parameters())
    assert set(logs) == {"mse", "aux_loss", "codes_in_batch"}


@pytest.mark.parametrize("build", TOKENIZERS)
@pytest.mark.parametrize("tokens", [torch.full((1, 8), 16), torch.full((1, 8), -1), torch.zeros(1, 8).int()])
def test_bad_tokens_are_refused(build, tokens):
    with pytest.raises(ValueError, match="tokens"):
        build().decode(tokens)


@pytest.mark.parametrize("quantizer", [FSQ((4, 3)), IFSQ((5, 3)), LFQ(2), BSQ(2)], ids=name)
@pytest.mark.parametrize(
    "z, message",
    [
        (torch.zeros(5, 3), r"\(\.\.\., 2\)"),
        (torch.zeros(5, 2).long(), "floating"),
        (torch.tensor([[0.0, torch.nan]]), "NaN"),
        (torch.tensor([[torch.inf, 0.0]]), "inf"),
    ],
)
def test_bad_vectors_are_refused(quantizer, z, message):
    for method in (quantizer, quantizer.nearest, quantizer.indices):
        with pytest.raises(ValueError, match=message):
            method(z)


@pytest.mark.parametrize("quantizer", [FSQ((4, 3)), IFSQ((5, 3)), LFQ(2), BSQ(2)], ids=name)
def test_bad_indices_are_refused(quantizer):
    for indices in (torch.tensor([quantizer.vocab_size]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=f"0 .. {quantizer.vocab_size - 1}"):
            quantizer.codes(indices)
    with pytest.raises(ValueError, match="long"):
        quantizer.codes(torch.tensor([1], dtype=torch.int32))


def test_empty_batches_pass():
    for quantizer in (FSQ((4, 3)), IFSQ((5, 3))):
        q, indices, _ = quantizer(torch.zeros(0, 2))
        assert q.shape == (0, 2) and indices.shape == (0,)
        assert quantizer.codes(indices).shape == (0, 2)
