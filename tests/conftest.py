"""Settings for all tests: one thread, fixed seeds, and property tests that draw the same examples every time."""

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("minimal", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("minimal")


def pytest_addoption(parser):
    parser.addoption("--shots", help="folder for the pictures that tests/test_browser.py takes of every page")


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Each test stands alone: whatever ran before, it sees the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
