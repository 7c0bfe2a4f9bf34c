"""What all tests share."""

from __future__ import annotations

import functools
from pathlib import Path

import hypothesis
import pytest
import torch
import typer.testing

# How long an example takes says more of the machine than of mafl.
hypothesis.settings.register_profile("mafl", deadline=None)
hypothesis.settings.load_profile("mafl")
# The networks of the tests are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)
# Typer would build all commands anew for each call in the tests' own process, which takes longer than many a call.
typer.testing._get_command = functools.cache(typer.testing._get_command)  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development scans beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the development scans are not there")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda") is not None:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
