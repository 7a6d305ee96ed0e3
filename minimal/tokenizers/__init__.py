"""Tokenizers: pixels to tokens and back.

All have `encode`, `decode`, `embed`, `loss`, `vocab_size`, `length` and `levels`.
"""
