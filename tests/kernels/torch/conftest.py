"""Makes the formulas beside the tests importable; every test draws from the same seed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch  # here, so that a machine without it skips the tests

    torch.manual_seed(0)
