"""Speculation without a look at the device: the samples and the trace of `sample_speculative`, from a fixed round."""

import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal.roofline import count_operators
from minimal.samplers import static_speculative
from minimal.samplers.cached import sample_cached
from minimal.samplers.capture import Recording, check_capture
from minimal.samplers.guidance import Guided
from minimal.samplers.speculative import sample_speculative, verify
from minimal.samplers.static_speculative import StaticSpeculator
from minimal.statistics import chi_square, enumerate_joint, sequence_index

FILTERS = [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05}]
names = pytest.mark.parametrize("filters", FILTERS, ids=["plain", "greedy", "filtered"])


def same(static, plain):
    assert torch.equal(static.tokens, plain.tokens)
    for count in ("forwards", "rows", "positions", "drafted", "accepted"):
        assert getattr(static.trace, count) == getattr(plain.trace, count), count


@pytest.mark.parametrize("k", [1, 3, 12])
def test_tokens_and_trace_are_those_of_speculative_sampling(k, task):
    model, n, options = task
    filters = {key: value for key, value in options.items() if key not in ("cond", "prompt")}
    asked = {key: options[key] for key in ("cond", "prompt") if key in options}
    speculator = StaticSpeculator(model, tiny_gpt(1), n, k=k, conditional="cond" in asked, **filters)
    plain = sample_speculative(model, tiny_gpt(1), n, k=k, generator=seeded(1), **options)
    same(speculator.sample(**asked, generator=seeded(1)), plain)
    if filters.get("temperature") == 0:
        assert torch.equal(plain.tokens, sample_cached(model, n, **options).tokens)


@names
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_one_speculator_serves_many_calls_also_from_a_recording(recorded, guided, filters):
    model, draft, n = Guided(tiny_gpt(), 1.5) if guided else tiny_gpt(), tiny_gpt(1), 5
    speculator, kept = StaticSpeculator(model, draft, n, k=3, **filters), []
    if recorded:
        speculator.rewind(1)
        speculator.graph = Recording(speculator.round)
    for seed, length in enumerate([0, 7, 1, 0, 11, 12]):
        cond = torch.randint(4, (n,), generator=seeded(seed))
        asked = dict(cond=cond, prompt=torch.randint(5, (n, length), generator=seeded(seed)))
        sample = speculator.sample(**asked, generator=seeded(seed))
        plain = sample_speculative(model, draft, n, k=3, **asked, generator=seeded(seed), **filters)
        same(sample, plain)
        kept.append((sample.tokens, plain.tokens))
    assert all(torch.equal(*pair) for pair in kept)  # later calls do not write into earlier samples


@names
@pytest.mark.parametrize("guided", [False, True])
def test_a_round_keeps_the_rules_of_a_capture_also_when_rows_are_done(guided, filters):
    model = Guided(tiny_gpt(), torch.linspace(0, 3, 12)) if guided else tiny_gpt()
    speculator = StaticSpeculator(model, tiny_gpt(1), 3, k=4, **filters)
    speculator.noise.uniform_(generator=seeded(0))
    speculator.rewind(1)
    assert len(check_capture(speculator.round, times=12)) > 200
    assert (speculator.length == 12).all()


def test_a_round_that_looks_is_refused():
    class Looks(StaticSpeculator):
        def round(self, *lacks):
            super().round(*lacks)
            if (self.length == self.model.length).all():
                self.counts.zero_()

    speculator = Looks(tiny_gpt(), tiny_gpt(1), 3)
    speculator.rewind(1)
    with pytest.raises(RuntimeError, match="back to the host"):
        check_capture(speculator.round)


def test_nothing_moves_in_memory_and_rows_that_are_done_idle_without_harm():
    model, draft = tiny_gpt(), tiny_gpt(1)
    speculator = StaticSpeculator(model, draft, 4, k=4)

    def addresses():
        state = (*vars(speculator).values(), *(x for cache in speculator.caches for x in vars(cache).values()))
        return [x.data_ptr() for x in state if isinstance(x, torch.Tensor)]

    before = addresses()
    assert len(before) >= 14
    tokens = speculator.sample(generator=seeded(0), cond=torch.arange(4)).tokens
    counts = speculator.counts.clone()
    with torch.inference_mode():
        for _ in range(100):
            speculator.round()
    assert addresses() == before
    assert torch.equal(speculator.canvas[:, :12], tokens)
    assert torch.equal(speculator.counts, counts)


def test_the_host_looks_far_less_often_than_there_are_rounds():
    sizes = dict(length=48, grid_width=None, dim=8, layers=1)
    model, draft, n = tiny_gpt(2, **sizes), tiny_gpt(3, **sizes), 2
    speculator = StaticSpeculator(model, draft, n, k=3, conditional=False)
    looks = {}
    for name, sampler in (
        ("static", lambda: speculator.sample(generator=seeded(1))),
        ("plain", lambda: sample_speculative(model, draft, n, k=3, generator=seeded(1))),
    ):
        looks[name] = count_operators(sampler)["_local_scalar_dense"]
    rounds = speculator.sample(generator=seeded(1)).trace.forwards["target"]
    assert looks["plain"] >= 3 * rounds
    assert looks["static"] < looks["plain"] / 4 and rounds > 12


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_all_sequences_of_a_transformer_come_out_as_often_as_they_should(seed, monkeypatch):
    sizes = dict(dtype=torch.float32, vocab_size=3, length=4, grid_width=2, dim=8, layers=1)
    model, draft, n = tiny_gpt(3, **sizes), tiny_gpt(4, **sizes), 20_000
    joint = enumerate_joint(model, 4)

    def p_value(speculator):
        generator = seeded(seed)
        tokens = torch.cat([speculator.sample(generator=generator).tokens for _ in range(5)])
        return chi_square(sequence_index(tokens, 3).bincount(minlength=3**4), joint).p_value

    speculator = StaticSpeculator(model, draft, n, k=2, conditional=False)
    assert p_value(speculator) > 0.01

    def keep_all(p, q, drafts, coins, repair):
        return verify(p, q, drafts, torch.zeros_like(coins), repair)

    monkeypatch.setattr(static_speculative, "verify", keep_all)
    assert p_value(speculator) < 1e-6


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    tokens = StaticSpeculator(model, tiny_gpt(1), 4, conditional=False).sample(generator=seeded(0)).tokens
    model.loss(tokens)[0].backward()


@pytest.mark.parametrize(
    "draft, build, call, message",
    [
        (lambda: tiny_gpt(vocab_size=6), {}, {}, "the draft has 6 tokens and the target 5"),
        (lambda: tiny_gpt(length=8), {}, {}, "context of 8 is shorter than the target's 12"),
        (tiny_gpt, {"k": 0}, {}, "k is 0; draft between 1 and 12"),
        (tiny_gpt, {"top_p": 0}, {}, "top_p is 0"),
        (tiny_gpt, {}, {}, "built with conditional=True"),
        (tiny_gpt, {"conditional": False}, {"cond": torch.tensor([0, 1])}, "built with conditional=False"),
        (tiny_gpt, {}, {"cond": torch.tensor([0, 4])}, "labels run from 0 to 4"),
        (tiny_gpt, {}, {"prompt": torch.zeros(2, 13, dtype=torch.long)}, "13 tokens are longer than the context"),
    ],
)
def test_a_pair_that_cannot_work_together_is_refused(draft, build, call, message):
    with pytest.raises(ValueError, match=message):
        StaticSpeculator(tiny_gpt(), draft(), 2, **build).sample(**call)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@names
def test_replaying_the_graph_draws_the_tokens_of_the_eager_round(filters):
    model, draft = tiny_gpt().cuda(), tiny_gpt(1).cuda()
    cond = torch.tensor([0, 1, 2, 3], device="cuda")
    graphed, eager = (StaticSpeculator(model, draft, 4, k=3, **filters) for _ in range(2))
    assert graphed.graph is not None
    eager.graph = None
    for seed, length in enumerate([0, 5, 1, 12]):
        asked = dict(cond=cond, prompt=torch.randint(5, (4, length), generator=seeded(seed)).cuda())
        same(graphed.sample(**asked, generator=seeded(seed)), eager.sample(**asked, generator=seeded(seed)))
