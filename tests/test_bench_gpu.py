"""The table of the GPU path: right tokens, right bytes, and honest about what is missing."""

import pytest
import torch

from minimal import bench, bench_gpu
from minimal.roofline import bytes_per_step


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench_gpu, "SIZE", {"cpu": dict(dim=32, layers=2, heads=2, hidden=32)})
    monkeypatch.setattr(bench_gpu, "VOCAB", 50)
    monkeypatch.setattr(bench_gpu, "TOKENS", 20)
    monkeypatch.setattr(bench_gpu, "copy_bandwidth", lambda device: 1e9)


def test_on_a_cpu_all_rows_but_the_graphs_are_printed(small, capsys):
    bench_gpu.gpu(bench.race, "cpu", rounds=1)
    out = capsys.readouterr().out
    assert "no graph rows" in out and "1.0 GB/s" in out
    for batch in (1, 16):
        table = out.split(f"cpu, batch {batch} ")[1].split("\n\n")[0]
        rows = [line for line in table.splitlines()[1:] if "%" in line]
        assert [row[:32].strip() for row in rows] == [
            "dynamic cache",
            "static cache",
            "static cache, fast",
            "static cache, bfloat16",
        ]
        assert float(rows[0][32:].split()[1]) == 1


def test_tokens_per_second_and_the_share_of_the_roofline_follow_from_the_seconds(small, capsys):
    model = bench_gpu.random_model("cpu")
    bench_gpu.gpu(lambda cases, rounds, device: dict.fromkeys(cases, 0.01), "cpu")
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("static cache   "))
    needed = sum(bytes_per_step(model, 1, t).total for t in range(1, 21))
    assert row[32:].split() == ["2000", "1.00", f"{needed / 1e9 / 0.01:.0%}"]


def test_bfloat16_reads_half_the_bytes(small):
    model, half = bench_gpu.random_model("cpu"), bench_gpu.random_model("cpu").bfloat16()
    assert bench_gpu.least_seconds(half, 1, 1e9) == pytest.approx(bench_gpu.least_seconds(model, 1, 1e9) / 2)


def test_every_case_draws_the_greedy_tokens_of_the_model_and_a_wrong_one_is_found_out(small):
    model = bench_gpu.random_model("cpu")
    cases = bench_gpu.jobs(model, 3)
    lines = bench_gpu.check(model, cases)
    assert len(lines) == 4 and all(" 0 of 60 choices differ" in line for line in lines[:3])
    net, draw = cases["static cache"]
    cases["static cache"] = net, lambda: (draw() + 1) % 50
    with pytest.raises(RuntimeError, match="static cache: .* are not the model's greedy choice"):
        bench_gpu.check(model, cases)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_graphs_are_raced_too(capsys):
    bench_gpu.gpu(bench.race, "cuda", rounds=1)
    out = capsys.readouterr().out
    for title in ("graph", "graph, fast", "graph, bfloat16"):
        assert out.count(f"{title:32s} ") == 2
