import pytest
import torch

from minimal import bench
from minimal.ar.raster import RasterGPT
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_the_peer_with_our_weights_decodes_our_tokens(kv_heads):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = RasterGPT(50, 24, dim=32, layers=2, heads=4, kv_heads=kv_heads, hidden=64).eval()
    torch.nn.init.normal_(model.head.weight)
    peer, prompt = bench.llama_peer(model), torch.full((2, 1), 50)
    theirs = peer.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)[:, 1:]
    for ours in (model, FastRaster(model)):
        tokens = sample_cached(ours, 2, temperature=0).tokens
        assert torch.equal(tokens, theirs)
        assert bench.disagreements(peer, prompt, tokens) == (0, 0)
    tokens[0, 3] = (tokens[0, 3] + 1) % 50
    assert bench.disagreements(peer, prompt, tokens)[1] >= 1


def test_cases_of_a_race_take_turns_and_the_first_round_warms_up():
    order = []
    bench.race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3


def test_the_floor_multiplies_as_much_as_the_model_does():
    from minimal.samplers.trace import multiply_adds

    fast = FastRaster(RasterGPT(bench.VOCAB, bench.TOKENS, dim=32, layers=2, heads=2, hidden=64))
    floor = multiply_adds(bench.bare_products(fast, 1))
    assert floor == multiply_adds(lambda: sample_cached(fast, 1, temperature=0))


def test_an_unknown_job_is_a_clear_error():
    with pytest.raises(ValueError, match="decode"):
        bench.main("encode")


def test_the_peers_with_our_codes_choose_our_tokens(monkeypatch):
    pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    monkeypatch.setattr(bench, "CODES", 40)
    monkeypatch.setattr(bench, "DIM", 6)
    for title, (ours, peer, floor, _) in bench.quantizer_pairs().items():
        z = torch.randn(2, 16, ours.dim)
        assert bench.other_tokens(ours, peer, z) == 0, title
        for quantizer in (ours, peer):
            assert quantizer.training
            bench.quantizer_step(quantizer, z)
        if floor is not None:
            floor(z.flatten(0, 1))
    ours, peer = next(iter(bench.quantizer_pairs().values()))[:2]
    ours.codebook = ours.codebook.roll(1, 0)
    assert bench.other_tokens(ours, peer, torch.randn(2, 16, 6)) == 32


def test_floors_of_generation_multiply_as_much_as_the_fast_forms_do(monkeypatch):
    from minimal import bench_scale
    from minimal.samplers.trace import multiply_adds

    monkeypatch.setattr(bench_scale, "SIZE", dict(dim=32, layers=2, heads=2))
    monkeypatch.setattr(bench_scale, "SCALES", (1, 2, 4))
    monkeypatch.setattr(bench_scale, "CODES", 200)
    monkeypatch.setattr(bench_scale, "TILE", 100)  # attention head by head, as on the large maps
    for title, cases in bench_scale.jobs(2).items():
        count = {name: multiply_adds(case) for name, case in cases.items()}
        fast, floor = count["fast"], count["floor: bare products"]
        assert 0.8 * fast < floor <= fast, title  # f̂ and the labels are left out
        assert count["uncached"] > count["plain, cached"] >= fast
        drawn = [case().tokens for name, case in cases.items() if not name.startswith("floor")]
        assert all(len(tokens) == 2 for tokens in drawn)


def test_the_job_prints_shares_of_the_floor(capsys, monkeypatch):
    from minimal import bench_scale

    monkeypatch.setattr(bench_scale, "jobs", lambda batch, device: {"raster": dict.fromkeys(CASES, lambda: None)})
    bench_scale.next_scale(lambda cases, rounds, device: {name: CASES[name] for name in cases})
    lines = capsys.readouterr().out.splitlines()
    assert "fast against uncached: 8.0 x" in lines and sum("raster, batch" in line for line in lines) == 2
    fast = next(line for line in lines if line.startswith("fast "))
    assert fast.split()[1:] == ["2000.0", "2.00", "50%"]


CASES = {"uncached": 16.0, "plain, cached": 4.0, "fast": 2.0, "floor: bare products": 1.0}
