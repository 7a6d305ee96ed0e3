"""Autoregressive models: they factorise a distribution over an order of its tokens."""
