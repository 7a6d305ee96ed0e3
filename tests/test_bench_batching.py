"""The bench of batching on a handful of requests: every policy runs, and the table says what the clock said."""

import pytest

from minimal import bench_batching


def test_the_table_shows_every_policy_beside_what_was_predicted(capsys, monkeypatch):
    monkeypatch.setattr(bench_batching, "REQUESTS", 6)
    monkeypatch.setattr(bench_batching, "LENGTH", 64)
    monkeypatch.setattr(bench_batching, "LONGEST", 24)
    runs = {}

    def race(cases, rounds, device):
        runs.update({name: case() for name, case in cases.items()})
        return {name: 1.0 if name.startswith("continuous") else 2.0 for name in cases}

    bench_batching.batching(race)
    lines = {line[:32].strip(): line[32:].split() for line in capsys.readouterr().out.splitlines() if line}
    assert set(runs) <= set(lines) and len(runs) == 5
    tokens = sum(request.new_tokens for request in runs["static"].requests)
    assert float(lines["continuous"][0]) == pytest.approx(tokens, abs=1)
    assert lines["static"][1:] == ["1.00", "1.00"] and lines["continuous, paged cache"][1:] == ["2.00", "-"]
    assert len(runs["one by one"].steps) == tokens > len(runs["static"].steps) >= len(runs["continuous"].steps)
