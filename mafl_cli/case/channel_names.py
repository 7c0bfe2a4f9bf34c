"""Are the files of a scan in the order of the channels? Their names often say so.

Two channels in each other's place are what no prediction gives away: the network is as sure of it as of the right one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SAME = (
    {"t1c", "t1ce", "t1gd", "t1post", "t1contrast"},
    {"t1", "t1w", "t1n"},
    {"t2", "t2w"},
    {"flair", "t2f", "fla"},
    {"pet", "pt", "suv"},
    {"adc", "adcmap"},
)
"""What people and data sets call the same contrast."""


def order_by_name(files: Sequence[str], channels: Sequence[str]) -> tuple[str, ...] | None:
    """The files in the order of the channels, if their names say that they are in another one.

    Args:
        files: names, the n-th of what is given as the n-th channel.
        channels: what the network calls its channels.

    Returns: None where the order fits, or where names do not say for each file which single channel it is.

    Example:
        >>> order_by_name(["p1_t1ce.nii.gz", "p1_flair.nii.gz"], ["FLAIR", "T1c"])
        ('p1_flair.nii.gz', 'p1_t1ce.nii.gz')
    """
    wanted = [_words(channel) for channel in channels]
    places: dict[int, str] = {}
    for file in files:
        own = _words(file)
        fits = [number for number, words in enumerate(wanted) if words and words <= own]
        if len(fits) != 1 or fits[0] in places:
            return None
        places[fits[0]] = file
    ordered = tuple(places[number] for number in sorted(places))
    return None if len(places) != len(channels) or ordered == tuple(files) else ordered


def _words(name: str) -> set[str]:
    """The words of a name, one for all that mean the same."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    for same in _SAME:
        if words & same:
            words = words - same | {min(same)}
    return words
