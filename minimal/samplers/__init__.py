"""Samplers: few forwards, same distribution. Every `sample_x(model, n, ...)` returns a `Sample` with its `Trace`."""
