"""The rules of a capture refuse what breaks them, and a recording replays what a CUDA graph would: right or wrong."""

import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal.roofline import count_operators
from minimal.samplers.cached import sample_cached
from minimal.samplers.capture import CaptureRules, Recording, check_capture
from minimal.samplers.cuda_graph import StaticDecoder
from minimal.samplers.fast import FastRaster
from minimal.samplers.guidance import Guided

FILTERS = [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05}]
names = pytest.mark.parametrize("filters", FILTERS, ids=["plain", "greedy", "filtered"])


def decoder_of(model, n=3, kind=StaticDecoder, **filters):
    decoder = kind(model, n, **filters)
    decoder.noise.uniform_(generator=seeded(0))
    return decoder


@names
@pytest.mark.parametrize("guided", [False, True])
def test_a_decode_step_keeps_the_rules_from_the_first_token_to_the_last(guided, filters):
    model = Guided(tiny_gpt(), torch.linspace(0, 3, 12)) if guided else tiny_gpt()
    decoder = decoder_of(model, **filters)
    assert len(check_capture(decoder.step, times=11)) > 50
    assert (decoder.cache.length == 12).all()


def test_the_rules_see_the_operators_that_the_counter_of_the_roofline_sees():
    decoder = decoder_of(tiny_gpt())
    seen = check_capture(decoder.step)
    with torch.inference_mode():
        assert len(seen) == count_operators(decoder.step).total()


def test_a_step_of_the_fast_form_keeps_the_rules_with_fewer_operators():
    model = tiny_gpt(dtype=torch.float32)
    decoders = [decoder_of(net) for net in (model, FastRaster(model))]
    for decoder in decoders:
        check_capture(decoder.step)
    with torch.inference_mode():
        plain, fast = (count_operators(decoder.step) for decoder in decoders)
    assert fast.total() - fast["view"] < 0.85 * (plain.total() - plain["view"])


# What is refused: the decode step, and one line more. Each names the rule.

NOT_ON_THE_HOST = "back to the host|on the host"
EXTRA = {
    "item": (lambda s: s.canvas[0, 0].item(), NOT_ON_THE_HOST),
    "decides": (lambda s: s.canvas.add_(0) if s.canvas[0, 0] == 1 else None, NOT_ON_THE_HOST),
    "tolist": (lambda s: s.cache.length.tolist() and int(s.cache.length[0]), NOT_ON_THE_HOST),
    "nonzero": (lambda s: s.canvas.nonzero(), NOT_ON_THE_HOST),
    "where": (lambda s: torch.where(s.canvas > 0), NOT_ON_THE_HOST),
    "boolean index": (lambda s: s.canvas[s.canvas > 0], NOT_ON_THE_HOST),
    "masked_select": (lambda s: s.canvas.masked_select(s.canvas > 0), NOT_ON_THE_HOST),
    "equal": (lambda s: torch.equal(s.canvas, s.canvas), NOT_ON_THE_HOST),
    "from numbers": (lambda s: s.canvas.copy_(torch.tensor([1])), "copy from the host"),
    "to another device": (lambda s: s.noise.to("meta"), "copies between cpu and meta"),
    "longer": (
        lambda s: setattr(s, "grown", torch.cat((s.grown, s.noise[:, :1]), 1)),
        "aten::cat returns .*unlike in the first step",
    ),
    "slices": (lambda s: s.noise[:, : s.steps].sum(1), "unlike in the first step"),
    "new buffer": (lambda s: setattr(s, "canvas", s.canvas + 0), "another address"),
    "moves on": (lambda s: s.noise[:, s.steps].clone(), "aten::select is given .*unlike in the first step"),
    "counts": (lambda s: s.canvas.add_(s.steps), "aten::add_ is given .*unlike in the first step"),
    "alternates": (lambda s: s.canvas.add_(0) if s.steps % 2 else s.canvas.mul_(1), "not what the first step ran"),
    "does more": (lambda s: s.canvas.add_(0) if s.steps > 2 else None, "not what the first step ran here"),
    "does less": (lambda s: s.canvas.add_(0) if s.steps < 3 else None, "the first one"),
}


class Spoilt(StaticDecoder):
    steps, more = 0, None

    def step(self):
        super().step()
        self.steps += 1
        self.more(self)


@pytest.mark.parametrize("what", EXTRA)
def test_a_step_that_breaks_a_rule_is_refused_with_the_reason(what):
    extra, reason = EXTRA[what]
    decoder = decoder_of(tiny_gpt(), kind=Spoilt)
    decoder.more, decoder.grown = extra, decoder.noise[:, :0]
    with pytest.raises(RuntimeError, match=reason):
        check_capture(decoder.step, times=4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_rules_hold_with_and_without_inference_mode(mode):
    value, rules = torch.ones(2), CaptureRules()
    with mode(), pytest.raises(RuntimeError, match="back to the host"), rules:
        value.sum().item()


def test_the_step_of_an_ordinary_cache_would_break_them():
    model, canvas = tiny_gpt(), torch.zeros(2, 12, dtype=torch.long)
    cache = model.new_cache(2)
    with pytest.raises(RuntimeError, match="unlike in the first step"):
        check_capture(lambda: model.logits(canvas, cache=cache, n=1))


def test_temporary_tensors_may_lie_anywhere():
    state, kept = torch.zeros(1000), []

    def step():
        kept.append(torch.ones(1000))  # so that the allocator never gives the same place again
        state.add_(kept[-1] * 2)

    assert check_capture(step, times=5)[-1] == "aten::add_"


@pytest.mark.parametrize("step, times, message", [(lambda: None, 3, "no operator"), (lambda: None, 1, "not 1 times")])
def test_what_cannot_be_checked_is_refused(step, times, message):
    with pytest.raises(ValueError, match=message):
        check_capture(step, times)


# Recordings


@names
@pytest.mark.parametrize("guided", [False, True])
def test_replaying_a_recording_draws_the_tokens_of_plain_decoding(guided, filters):
    model = Guided(tiny_gpt(), 1.5) if guided else tiny_gpt()
    decoder = StaticDecoder(model, 4, **filters)
    decoder.graph = Recording(decoder.step)
    decoder.step = None  # no Python of the step is needed any more
    for seed, length in enumerate([0, 5, 0, 12]):
        prompt = torch.randint(5, (4, length), generator=seeded(seed))
        asked = dict(cond=torch.tensor([0, 1, 2, 3]), prompt=prompt)
        replayed = decoder.sample(**asked, generator=seeded(seed)).tokens
        assert torch.equal(replayed, sample_cached(model, 4, **asked, generator=seeded(seed), **filters).tokens)


def test_a_replay_runs_the_operators_of_the_step_and_copies_what_is_new():
    decoder = decoder_of(tiny_gpt())
    step = check_capture(decoder.step)
    decoder.rewind()

    def without(names, *left_out):
        return [name for name in names if name.removeprefix("aten::") not in left_out]

    recording = Recording(decoder.step)
    recorded = [op._schema.name for op, *_ in recording.calls]
    assert without(recorded, "detach") == without(step, "detach")  # a view of no consequence
    assert without(check_capture(recording.replay), "copy_") == without(recorded, "copy_")


def replayed(spoil):
    """Tokens of a decoder whose step is spoilt: run, and replayed from a recording."""
    tokens = []
    for record in (False, True):
        decoder = StaticDecoder(tiny_gpt(), 3, conditional=False)
        step, decoder.steps = decoder.step, 0

        def spoilt(decoder=decoder, step=step):
            spoil(decoder)
            step()
            decoder.steps += 1

        decoder.step = spoilt
        if record:
            decoder.graph = Recording(decoder.step)
        decoder.steps = 0
        tokens.append(decoder.sample(generator=seeded(3)).tokens)
    return tokens


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.noise[:, d.steps].fill_(0.5),  # a Python number: the recording keeps the first
        lambda d: setattr(d, "noise", (d.noise * 7) % 1),  # a new buffer: the recording reads the old one
    ],
    ids=["number", "address"],
)
def test_what_the_rules_refuse_a_recording_replays_wrongly(spoil):
    run, wrong = replayed(spoil)
    assert not torch.equal(run, wrong)
    good = replayed(lambda d: d.noise.mul_(7).remainder_(1))
    assert torch.equal(*good)
