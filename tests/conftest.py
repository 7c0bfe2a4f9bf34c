"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

# The networks of the tests are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development scans beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development scans are not there")
    return folder
