"""The captured decode step: the same tokens as plain cached decoding, and a step that keeps the rules of a capture.

A CUDA graph wants fixed shapes, fixed addresses and no way back to the host. A dispatch mode sees every operator that a
step runs, so the rules are checked on any machine.
"""

import subprocess
import sys
import textwrap

import pytest
import torch
from tiny import seeded, tiny_gpt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimal.samplers.cached import sample_cached
from minimal.samplers.cuda_graph import StaticDecoder, sample_static
from minimal.samplers.guidance import Guided

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


# The rules of a capture


class CaptureRules(TorchDispatchMode):
    """Raises where a capture would fail: on reading to the host, and on shapes that differ between two steps."""

    FORBIDDEN = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::masked_select"}

    def __init__(self):
        super().__init__()
        self.first, self.now = None, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op._schema.name in self.FORBIDDEN:
            raise RuntimeError(f"{op._schema.name} reads values back to the host")
        if op._schema.name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise RuntimeError("a boolean index has to count what it selects")
        out = op(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.now.append((op._schema.name, shapes))
        if self.first is not None and self.first[: len(self.now)] != self.now:
            raise RuntimeError(f"{op._schema.name} gives {shapes}, unlike in the first step")
        return out

    def next_step(self):
        assert self.now, "a step without operators was not watched"
        assert self.first is None or self.first == self.now
        self.first, self.now = self.now, []


def run_under_rules(decoder, steps):
    rules = CaptureRules()
    decoder.noise.uniform_(generator=seeded(0))
    with torch.no_grad():  # not inference_mode, which would show composite operators whole
        for _ in range(steps):
            with rules:
                decoder.step()
            rules.next_step()
    return rules


FILTERS = [{}, {"temperature": 0}, {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.05}]


@pytest.mark.parametrize("filters", FILTERS, ids=["plain", "greedy", "filtered"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_step_never_reads_back_and_never_changes_a_shape(guided, filters):
    model = Guided(tiny_gpt(), torch.linspace(0, 3, 12)) if guided else tiny_gpt()
    rules = run_under_rules(StaticDecoder(model, 3, **filters), steps=12)
    assert len(rules.first) > 50


class ReadsBack(StaticDecoder):
    def step(self):
        super().step()
        self.canvas[0, 0].item()


class Decides(StaticDecoder):
    def step(self):
        super().step()
        if self.canvas[0, 0] == 1:
            self.canvas.add_(0)


class Selects(StaticDecoder):
    def step(self):
        super().step()
        self.canvas[self.canvas > 0]


class Grows(StaticDecoder):
    steps = 0

    def step(self):
        super().step()
        self.steps += 1
        self.canvas[:, : self.steps].clone()


class Alternates(StaticDecoder):
    steps = 0

    def step(self):
        super().step()
        self.steps += 1
        if self.steps % 2:
            self.canvas.add_(0)


@pytest.mark.parametrize("decoder", [ReadsBack, Decides, Selects, Grows, Alternates])
def test_the_rules_catch_a_step_that_breaks_them(decoder):
    with pytest.raises((RuntimeError, AssertionError)):
        run_under_rules(decoder(tiny_gpt(), 2), steps=4)


def test_the_step_of_an_ordinary_cache_would_break_them():
    model, canvas, rules = tiny_gpt(), torch.zeros(2, 12, dtype=torch.long), CaptureRules()
    cache = model.new_cache(2)
    with pytest.raises(RuntimeError, match="unlike in the first step"):
        for _ in range(3):
            with rules:
                model.logits(canvas, cache=cache, n=1)
            rules.next_step()


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
        from minimal.samplers.cuda_graph import sample_static
        from minimal.samplers.guidance import Guided
        from minimal.samplers.jacobi import sample_jacobi
        from minimal.samplers.speculative import sample_speculative

        model = RasterGPT(3, 4, num_classes=2, dim=8, layers=1, heads=2, kv_heads=1).eval()
        for guided in (model, Guided(model, 1.5)):
            for sampler in (sample_cached, sample_uncached, sample_static):
                sampler(guided, 2, cond=torch.tensor([0, 1]), top_p=0.9)
            sample_jacobi(guided, 2, block=2, cond=torch.tensor([0, 1]))
            sample_speculative(guided, model, 2, k=2, cond=torch.tensor([0, 1]))
        found = [name for name in sys.modules if name == "triton" or name.startswith(("triton.", "torch._inductor"))]
        sys.exit(f"sampling imported {found + Watch.asked}" if found or Watch.asked else 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_static(model, 4, generator=seeded(0)).tokens)[0].backward()


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
