"""A model of which nothing is seen but the labels that it draws: a program, or a function.

Each question is a scan as NIfTI in a temporary folder of its own, on the original's grid and in its type, and the mask
that comes back. Questions are counted; the same one is asked once.
"""

from __future__ import annotations

import hashlib
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mafl_cli.errors import InputError, ModelError
from mafl_cli.names import outside
from mafl_cli.network import command
from mafl_cli.network.source import Closed, Command, Drawer
from mafl_cli.scans import nifti_write
from mafl_cli.scans.masks import Masks
from mafl_cli.scans.volume import Volume

_MASK = "mask.nii.gz"


@dataclass(eq=False)
class Oracle:
    """What is asked, and what it answered.

    scans: whose grid and types questions have. asked: how often it drew; known: answers by the hash of their question.
    """

    model: Closed
    scans: tuple[Volume, ...]
    asked: int = 0
    repeated: int = 0
    known: dict[str, bytes] = field(default_factory=dict)

    def codes(self, data: Sequence[NDArray[np.float32]], *, afresh: bool = False) -> NDArray[np.int64]:
        """What is drawn on a scan, (I, J, K) for each channel, native -> (I, J, K).

        afresh: ask even where the answer is known.
        Raises: ModelError where there is none that is a mask on the scan's grid.
        """
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in data)).hexdigest()
        shape = self.scans[0].shape
        if digest in self.known and not afresh:
            self.repeated += 1
            return np.frombuffer(zlib.decompress(self.known[digest]), np.uint16).reshape(shape).astype(np.int64)
        found = self._function(self.model, data) if isinstance(self.model, Drawer) else self._program(self.model, data)
        self.asked += 1
        # Masks are large and simple: packed they are a hundredth.
        self.known[digest] = zlib.compress(np.ascontiguousarray(found.astype(np.uint16)).tobytes(), 1)
        return found

    def _function(self, model: Drawer, data: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
        drawn = np.asarray(model.function([each.copy() for each in data]))
        if drawn.shape != self.scans[0].shape or drawn.dtype.kind not in "biu":
            raise ModelError(
                f"{outside(model.name)}: must give whole numbers of shape {self.scans[0].shape}, got {drawn.dtype} of "
                f"shape {drawn.shape}."
            )
        if drawn.size and not 0 <= int(drawn.min()) <= int(drawn.max()) <= np.iinfo(np.uint16).max:
            raise ModelError(f"{outside(model.name)}: must give labels from 0 to 65535.")
        return drawn.astype(np.int64)

    def _program(self, model: Command, data: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
        with tempfile.TemporaryDirectory(prefix="mafl-") as place:
            folder = Path(place).resolve()
            inputs = [folder / f"scan_{number:04d}.nii.gz" for number in range(len(data))]
            for path, scan, values in zip(inputs, self.scans, data, strict=True):
                nifti_write.write_native(path, scan, values)
            command.run(model, inputs, folder / _MASK, folder)
            try:
                labels, _, _ = Masks(adjustable=False).read(folder / _MASK, replace(self.scans[0], name=inputs[0].name))
            except InputError as exc:
                raise ModelError(f"{outside(model.name)}: what it drew cannot be used: {exc}") from exc
        return labels
