"""Makes the definitions beside the tests importable; every test draws the same numbers alone and in company."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from definitions import RNG  # after the line that makes it importable


@pytest.fixture(autouse=True)
def _numbers_of_this_test(request: pytest.FixtureRequest) -> None:
    RNG.bit_generator.state = np.random.default_rng(zlib.crc32(request.node.name.encode())).bit_generator.state
