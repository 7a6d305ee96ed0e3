"""Convolutional blocks: their sizes, their start, and images that stand alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimal.nn.conv import ConvDecoder, ConvEncoder, Downsample, ResBlock, Upsample, norm


@given(halvings=st.integers(0, 3), channels=st.sampled_from([1, 3]), blocks=st.integers(1, 2), side=st.integers(1, 3))
def test_the_decoder_undoes_the_sizes_of_the_encoder(halvings, channels, blocks, side):
    widths = (4, 8, 8, 12)[: halvings + 1]
    x = torch.randn(2, channels, 8 * side, 8)
    z = ConvEncoder(channels, 5, widths, blocks)(x)
    assert z.shape == (2, 5, 8 * side // 2**halvings, 8 // 2**halvings)
    assert ConvDecoder(channels, 5, widths, blocks)(z).shape == x.shape


def test_a_residual_block_starts_as_its_skip_path():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResBlock(8)(x), x)
    wider = ResBlock(8, 16)
    assert torch.equal(wider(x), wider.skip(x))


def test_enlarging_repeats_every_pixel():
    up = Upsample(1)
    nn.init.zeros_(up.bias)
    nn.init.dirac_(up.weight)
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert torch.equal(up(x)[0, 0], torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3.0]]))


def test_halving_keeps_every_second_pixel():
    down = Downsample(1)
    nn.init.zeros_(down.bias)
    nn.init.dirac_(down.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(down(x)[0, 0], x[0, 0, ::2, ::2])


@pytest.mark.parametrize("channels", [1, 6, 8, 12, 32])
def test_groups_divide_the_channels(channels):
    x = torch.randn(2, channels, 3, 3) * 5 + 2
    y = norm(channels)(x)
    assert abs(y.mean()) < 1e-5 and abs(y.square().mean() - 1) < 1e-2


def test_every_image_stands_alone():
    model = nn.Sequential(ConvEncoder(1, 4), ConvDecoder(1, 4)).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_every_weight_receives_a_gradient_once_the_start_is_left_behind():
    model = nn.Sequential(ConvEncoder(1, 4, (4, 4)), ConvDecoder(1, 4, (4, 4)))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    model(torch.randn(2, 1, 8, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
