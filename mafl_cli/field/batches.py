"""Smaller batches when the memory of a device does not suffice."""

from __future__ import annotations

from mafl_cli.errors import ModelError
from mafl_cli.field.field import Say
from mafl_cli.network.reasons import is_of_network, is_out_of_memory, meaning


def fewer(batch: int, exc: Exception, say: Say, name: str, sample: str) -> int:
    """Half the batch after running out of memory.

    Raises: ModelError when there is no less than one, or when the network failed otherwise; `exc` if it did not.
    """
    if not is_out_of_memory(exc):
        raise ModelError(f"{name}: cannot go on: {meaning(exc)}.") if is_of_network(exc) else exc
    if batch == 1:
        raise ModelError(f"{name}: one {sample} needs more memory than there is: choose a smaller `roi`.") from exc
    say(f"not enough memory: going on with {batch // 2} at a time")
    return batch // 2


def slices_per_batch(voxels: int) -> int:
    """How many slices of `voxels` pixels to attack together: about a million pixels, 1 to 16 slices."""
    return max(1, min(16, 2**20 // voxels))
