"""FlexVAR's tokenizer: every map of every size is a picture of its own."""

import pytest
import torch
import torch.nn.functional as F
from tiny import wild

from minimal import checkpoints
from minimal.data import load
from minimal.metrics import psnr
from minimal.tokenizers.flex_scale import FlexScaleTokenizer, side_of


def tiny(**changes):
    torch.manual_seed(0)
    sizes = dict(image_shape=(3, 16, 16), codebook_size=11, dim=4, widths=(16, 16), patch=2) | changes
    return wild(FlexScaleTokenizer(**sizes), 0).requires_grad_(True)


def pictures(batch, side=16):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_map_holds_the_codes_at_the_smallest_angle_to_the_averaged_latents():
    tokenizer, x = tiny(), pictures(2)
    z = tokenizer.latents(x).mT.unflatten(-1, (4, 4))  # (2, 4, 4, 4)
    codes = F.normalize(tokenizer.quantizer.weight, dim=-1)
    for p in (1, 2, 3, 4):
        small = F.adaptive_avg_pool2d(z, p).flatten(2).mT
        cosine = F.normalize(small, dim=-1) @ codes.mT
        assert torch.equal(tokenizer.pyramid(x, [p]), cosine.argmax(-1))


def test_a_pyramid_is_its_maps_in_order_and_the_full_map_is_the_encoding():
    tokenizer, x = tiny(), pictures(2)
    maps = [tokenizer.pyramid(x, [p]) for p in (1, 3, 4)]
    assert [m.shape[1] for m in maps] == [1, 9, 16]
    assert torch.equal(tokenizer.pyramid(x, (1, 3, 4)), torch.cat(maps, dim=1))
    assert torch.equal(tokenizer.encode(x), maps[-1])
    assert torch.equal(tokenizer.pyramid(x, (1,))[:1], tokenizer.pyramid(x[:1], (1,)))


@pytest.mark.parametrize("p", [1, 2, 3, 4, 6, 9])
def test_any_square_map_is_painted_at_its_own_size(p):
    tokenizer = tiny()
    tokens = torch.randint(11, (2, p * p))
    images = tokenizer.decode(tokens)
    assert images.shape == (2, 3, 4 * p, 4 * p)
    assert torch.equal(images, tokenizer.paint(tokenizer.embed(tokens)))
    torch.testing.assert_close(tokenizer.decode(tokens[1:]), images[1:])
    torch.testing.assert_close(tokenizer.embed(tokens).norm(dim=-1), torch.ones(2, p * p))


def test_the_loss_compares_each_map_with_the_picture_of_its_size():
    tokenizer, x = tiny(), pictures(3)
    tokenizer.sides = lambda: [4, 2]
    loss, logs = tokenizer.loss(x)
    expected, commitment = 0.0, []
    for p in (4, 2):
        z = F.normalize(F.adaptive_avg_pool2d(tokenizer.latents(x).mT.unflatten(-1, (4, 4)), p).flatten(2).mT, dim=-1)
        tokens = tokenizer.pyramid(x, [p])
        expected += F.mse_loss(tokenizer.decode(tokens), F.adaptive_avg_pool2d(x, 4 * p)) / 2
        commitment.append((z - tokenizer.embed(tokens)).square())
    aux = 1.25 * torch.cat(commitment, dim=1).mean()  # to the codes, and of the codes
    torch.testing.assert_close(loss, expected + aux)
    torch.testing.assert_close(logs["mse"], F.mse_loss(tokenizer.decode(tokenizer.encode(x)), x))


def test_every_map_has_a_gradient_for_encoder_decoder_and_codes():
    for sides in ([4], [1], [3]):
        tokenizer = tiny().train()
        tokenizer.sides = lambda sides=sides: sides
        tokenizer.loss(pictures(8))[0].backward()
        for part in (tokenizer.encoder, tokenizer.decoder, tokenizer.quantizer):
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters()), sides


def test_the_full_side_is_always_there_and_the_smaller_ones_vary():
    tokenizer = tiny()
    torch.manual_seed(0)
    drawn = [tokenizer.sides() for _ in range(200)]
    assert all(d[0] == 4 and len(d) == len(set(d)) == 3 for d in drawn)
    shares = torch.tensor([p for d in drawn for p in d[1:]]).bincount(minlength=4)[1:] / 200
    assert (shares - 2 / 3).abs().max() < 0.12
    assert tiny(image_shape=(3, 4, 4)).sides() == [1]


def test_the_constructor_is_remembered():
    tokenizer, x = tiny(), pictures(2)
    again = FlexScaleTokenizer(**tokenizer.config)
    again.load_state_dict(tokenizer.state_dict())
    assert torch.equal(again.eval().encode(x), tokenizer.encode(x))


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda t: t.decode(torch.zeros(1, 5, dtype=torch.long)), "a map is square, p·p tokens; got 5"),
        (lambda t: t.decode(torch.zeros(1, 0, dtype=torch.long)), "got 0"),
        (lambda t: t.decode(torch.full((1, 4), 11)), r"indices lie in 0 .. 10, got 11 to 11"),
        (lambda t: t.decode(torch.zeros(1, 4)), "indices must be long"),
        (lambda t: t.pyramid(pictures(1), ()), r"sides of at least 1, got \(\)"),
        (lambda t: t.pyramid(pictures(1), (0, 2)), r"sides of at least 1, got \(0, 2\)"),
        (lambda t: t.pyramid(pictures(1, 8), (2,)), r"expected images of shape \(B, 3, 16, 16\)"),
        (lambda t: FlexScaleTokenizer((3, 16, 32), 11, 4), "maps are square; the grid of"),
    ],
)
def test_bad_input_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(tiny())


def test_side_of_a_square():
    assert [side_of(p * p) for p in range(1, 40)] == list(range(1, 40))


@pytest.mark.slow
def test_the_shipped_tokenizer_paints_held_out_pictures_at_every_size():
    tokenizer, x = checkpoints.load("shapes_flex"), load("shapes", "validation", version="single", count=100).images
    with torch.inference_mode():
        for p, least in ((1, 20), (2, 20), (4, 24), (8, 30)):
            shown = tokenizer.decode(tokenizer.pyramid(x, [p])).clamp(-1, 1)
            assert psnr(shown, tokenizer.shrunk(x, p)).mean() > least
