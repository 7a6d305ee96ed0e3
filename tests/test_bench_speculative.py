import pytest
import torch
from tiny import seeded, tiny_gpt

from minimal import bench, bench_speculative
from minimal.samplers.cached import sample_cached
from minimal.samplers.speculative import sample_speculative

SIZES = dict(dtype=torch.float32, num_classes=0, grid_width=None)


@pytest.fixture
def pair():
    return tiny_gpt(0, **SIZES), tiny_gpt(1, layers=1, **SIZES)


def test_each_prompt_is_continued_alone_and_its_costs_are_summed(pair):
    prompts = torch.randint(5, (3, 2), generator=seeded(0))
    counts = bench_speculative.decode(sample_speculative, *pair, prompts=prompts, k=3, temperature=0)
    traces = [sample_speculative(*pair, 1, k=3, prompt=prompt, temperature=0).trace for prompt in prompts.split(1)]
    assert counts["tokens"] == 3 * 10 and counts["passes"] == sum(trace.forwards["target"] for trace in traces)
    assert counts["drafted"] == sum(trace.drafted for trace in traces) > counts["accepted"]
    plain = bench_speculative.decode(sample_cached, pair[0], prompts=prompts, temperature=0)
    assert plain["passes"] == plain["tokens"] == 30 and not plain["drafted"]


def test_costs_are_counted_in_passes_of_the_target_over_one_position(pair, monkeypatch):
    monkeypatch.setattr(bench_speculative, "GUESSES", (2, 4))
    model, draft = pair
    widths = []

    def watched(net, name):
        inner = net.logits

        def logits(tokens, cond=None, *, cache=None, n=None):
            widths.append((name, n))
            return inner(tokens, cond, cache=cache, n=n)

        net.logits = logits

    watched(model, "target"), watched(draft, "draft")

    def race(cases, rounds, device):
        seconds = {}
        for name, case in cases.items():
            widths.clear()
            case()
            seconds[name] = float(sum(n if net == "target" else n / 10 for net, n in widths))
        return seconds

    cost = bench_speculative.costs(race, model, draft, 1, "cpu")
    assert cost[2] == pytest.approx(((2 + 1) / 10 / 2, 3)) and cost[4] == pytest.approx(((2 + 3) / 10 / 4, 5))


def test_the_prediction_is_tokens_per_pass_over_the_cost_of_a_round(capsys):
    counts = {"tokens": 300, "passes": 100, "drafted": 400, "accepted": 200}
    cases = {"cached": lambda: {"tokens": 300, "drafted": 0}, "k = 4": lambda: counts}
    bench_speculative.report("title", {"cached": 3.0, "k = 4": 1.5}, cases, {4: (0.25, 2.0)})
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["cached", "100", "1.00"]
    assert lines[3].split()[3:] == ["200", "2.00", "1.00", "3.00", "0.500", "0.25", "2.00"]


@pytest.mark.slow
def test_the_job_runs_on_the_real_pair(capsys, monkeypatch):
    monkeypatch.setattr(bench_speculative, "GUESSES", (4,))
    monkeypatch.setattr(bench_speculative, "TEXTS", 1)
    bench_speculative.speculative(bench.race, rounds=1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("k = 4")]
    assert len(lines) == 4 and all(float(line[6]) > 2 for line in lines)  # tokens per pass
