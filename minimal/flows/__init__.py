"""Flows: models that transport noise (t = 0) to data (t = 1).

A transport model has `velocity(x, t, cond=None)`, with x (B, ...) and t (B,), and `loss(x1, cond=None, *,
generator=None)`, which returns a scalar and a dict of logs. The samplers of minimal/samplers/flow.py take any such
model.
"""
