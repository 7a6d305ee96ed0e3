"""The static decode step: the same tokens as plain cached decoding, at fixed addresses, in any precision.

That it keeps the rules of a capture is in test_capture.py.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal.samplers.cached import sample_cached
from minimal.samplers.cuda_graph import StaticDecoder, record, sample_static
from minimal.samplers.guidance import Guided

FILTERS = [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05}]
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_static_step_draws_the_tokens_of_cached_decoding(task):
    model, n, options = task
    static, cached = (sampler(model, n, generator=seeded(1), **options) for sampler in (sample_static, sample_cached))
    assert torch.equal(static.tokens, cached.tokens)
    assert static.trace.rows == cached.trace.rows or "prompt" in options  # a prompt is a forward of its own here
    assert static.trace.positions == cached.trace.positions


def test_one_decoder_serves_many_calls():
    model, n = Guided(tiny_gpt(), 1.5), 5
    decoder, kept = StaticDecoder(model, n, top_k=4), []
    for seed, length in enumerate([0, 7, 0, 3, 12, 11]):
        cond = torch.randint(4, (n,), generator=seeded(seed))
        prompt = torch.randint(5, (n, length), generator=seeded(seed)) if length else None
        asked = dict(cond=cond, prompt=prompt)
        sample = decoder.sample(**asked, generator=seeded(seed))
        expected = sample_cached(model, n, **asked, generator=seeded(seed), top_k=4).tokens
        assert torch.equal(sample.tokens, expected)
        kept.append((sample.tokens, expected))
    assert all(torch.equal(*pair) for pair in kept)  # later calls do not write into earlier samples


def test_a_decoder_without_labels_serves_unconditional_models():
    for model in (tiny_gpt(), tiny_gpt(num_classes=0)):
        tokens = StaticDecoder(model, 3, conditional=False).sample(generator=seeded(1)).tokens
        assert torch.equal(tokens, sample_cached(model, 3, generator=seeded(1)).tokens)


# State and imports


def test_nothing_moves_in_memory_for_a_hundred_steps():
    model = tiny_gpt(length=100, grid_width=10)
    decoder = StaticDecoder(Guided(model, 1.5), 2)
    cache = decoder.cache

    def addresses():
        state = (decoder.canvas, decoder.noise, decoder.cond, cache.k, cache.v, cache.length, cache.slots)
        return [tensor.data_ptr() for tensor in state]

    before = addresses()
    with torch.inference_mode():
        for _ in range(100):
            decoder.step()
            assert addresses() == before
    assert decoder.cache is cache and cache.length.tolist() == [100] * 4
    decoder.sample(cond=torch.tensor([0, 1]), prompt=torch.zeros(2, 90, dtype=torch.long), generator=seeded(0))
    assert addresses() == before


@pytest.mark.slow
def test_sampling_imports_no_compiler():
    program = """
        import sys
        import torch

        class Watch:  # sees what is asked for, also where the answer is that there is none
            asked = []

            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "triton" or name.startswith("torch._inductor"):
                    self.asked.append(name)

        sys.meta_path.insert(0, Watch())
        from minimal.ar.raster import RasterGPT
        from minimal.samplers.cached import sample_cached, sample_uncached
        from minimal.samplers import capture  # its dispatch modes do import the compiler, but only when they run
        from minimal.samplers.cuda_graph import sample_static
        from minimal.samplers.guidance import Guided
        from minimal.samplers.jacobi import sample_jacobi
        from minimal.samplers.speculative import sample_speculative
        from minimal.samplers.static_speculative import StaticSpeculator

        model = RasterGPT(3, 4, num_classes=2, dim=8, layers=1, heads=2, kv_heads=1).eval()
        for guided in (model, Guided(model, 1.5)):
            for sampler in (sample_cached, sample_uncached, sample_static):
                sampler(guided, 2, cond=torch.tensor([0, 1]), top_p=0.9)
            sample_jacobi(guided, 2, block=2, cond=torch.tensor([0, 1]))
            sample_speculative(guided, model, 2, k=2, cond=torch.tensor([0, 1]))
            StaticSpeculator(guided, model, 2, k=2, top_k=2).sample(cond=torch.tensor([0, 1]))
        found = [name for name in sys.modules if name == "triton" or name.startswith(("triton.", "torch._inductor"))]
        sys.exit(f"sampling imported {found + Watch.asked}" if found or Watch.asked else 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_static(model, 4, generator=seeded(0)).tokens)[0].backward()


def test_bfloat16_differs_from_float32_in_near_ties_alone():
    n, V = 64, 30
    model, half = (tiny_gpt(dtype=dtype, vocab_size=V) for dtype in (torch.float32, torch.bfloat16))
    cond, prompt = torch.arange(n) % 4, torch.randint(V, (n, 1), generator=seeded(0))
    decoder = StaticDecoder(half, n, temperature=0)
    assert decoder.cache.k.dtype == torch.bfloat16 and decoder.noise.dtype == torch.float32
    tokens = decoder.sample(cond=cond, prompt=prompt).tokens
    logits, chosen = model.logits(tokens, cond)[:, 1:], tokens[:, 1:, None]  # each choice after its own past
    lack = logits.amax(-1) - logits.gather(-1, chosen)[..., 0]
    other = int((lack > 0).sum())
    print(f"{other} of {lack.numel()} greedy tokens are not float32's; the largest gap is {lack.max():.3f}")
    assert 0 < other < 0.03 * lack.numel()
    assert lack.max() < 0.04 * logits.std()  # bfloat16 has 8 bits


@pytest.mark.parametrize("filters", FILTERS, ids=["plain", "greedy", "filtered"])
def test_a_bfloat16_step_draws_what_plain_bfloat16_decoding_draws_but_for_near_ties(filters):
    model, n = tiny_gpt(dtype=torch.bfloat16), 200
    static, cached = (f(model, n, generator=seeded(1), **filters).tokens for f in (sample_static, sample_cached))
    assert (static == cached).all(1).float().mean() > 0.9  # attention over more slots rounds in another order


# The order of a recording, with the CUDA calls replaced


def test_the_state_is_rewound_before_each_warm_up_step_and_before_the_recording(monkeypatch):
    log = []

    class Fake:
        def __init__(self, *_):
            pass

        def __enter__(self):
            log.append("enter")

        def __exit__(self, *_):
            log.append("exit")

        def wait_stream(self, other):
            log.append("wait")

    for name in ("Stream", "stream", "graph", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Fake)
    monkeypatch.setattr(torch.cuda, "current_stream", Fake)
    record(lambda: log.append("step"), lambda: log.append("rewind"))
    warm_up = ["wait", "enter", *["rewind", "step"] * 3, "exit", "wait"]
    assert log == [*warm_up, "rewind", "enter", "step", "exit"]


# Bad input


@pytest.mark.parametrize(
    "n, build, call, message",
    [
        (0, {}, {}, "asked for 0 samples"),
        (2, {"temperature": -1}, {}, "temperature is -1"),
        (2, {}, {}, "built with conditional=True"),
        (2, {"conditional": False}, {"cond": torch.tensor([0, 1])}, "built with conditional=False"),
        (2, {}, {"cond": torch.tensor([0, 4])}, "labels run from 0 to 4"),
        (2, {}, {"cond": torch.tensor([0])}, r"labels must be long \(2,\)"),
        (2, {}, {"cond": torch.tensor([0, 1]), "prompt": torch.zeros(3, 2, dtype=torch.long)}, "from 3 prompts"),
    ],
)
def test_what_cannot_be_decoded_is_refused(n, build, call, message):
    with pytest.raises(ValueError, match=message):
        StaticDecoder(tiny_gpt(), n, **build).sample(**call)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        StaticDecoder(tiny_gpt().train(), 2)


# On a GPU


def on_gpu(**changes):
    return tiny_gpt(**changes).cuda()


@pytest.mark.parametrize("options", FILTERS, ids=["plain", "greedy", "filtered"])
@pytest.mark.parametrize("guided", [False, True])
class TestOnAGPU:
    pytestmark = gpu

    def test_replaying_the_graph_draws_the_tokens_of_the_eager_step(self, guided, options):
        model = Guided(on_gpu(), 1.5).cuda() if guided else on_gpu()
        cond = torch.tensor([0, 1, 2, 3], device="cuda")
        graphed, eager = StaticDecoder(model, 4, **options), StaticDecoder(model, 4, **options)
        assert graphed.graph is not None
        eager.graph = None
        for seed, length in enumerate([0, 5, 0, 12]):
            prompt = torch.randint(5, (4, length), generator=seeded(seed)).cuda()
            asked = dict(cond=cond, prompt=prompt)
            replayed = graphed.sample(**asked, generator=seeded(seed)).tokens
            assert torch.equal(replayed, eager.sample(**asked, generator=seeded(seed)).tokens)
            assert torch.equal(replayed, sample_cached(model, 4, **asked, generator=seeded(seed), **options).tokens)

    def test_a_bfloat16_model_is_captured_too(self, guided, options):
        model = on_gpu(dtype=torch.bfloat16)
        model = Guided(model, 1.5).cuda() if guided else model
        decoder = StaticDecoder(model, 4, **options)
        tokens = decoder.sample(cond=torch.tensor([0, 1, 2, 3], device="cuda"), generator=seeded(0)).tokens
        assert tokens.shape == (4, 12) and 0 <= tokens.min() and tokens.max() < 5
        eager = StaticDecoder(model, 4, **options)
        eager.graph = None
        again = eager.sample(cond=torch.tensor([0, 1, 2, 3], device="cuda"), generator=seeded(0)).tokens
        assert torch.equal(tokens, again)
