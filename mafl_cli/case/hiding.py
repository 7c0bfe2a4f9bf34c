"""What a case keeps to itself: names out of every line and error, and results away from its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mafl_cli.case.problem import Say
from mafl_cli.case.request import AttackRequest
from mafl_cli.errors import MaflError, UsageError
from mafl_cli.names import Redaction, public_name
from mafl_cli.results import files
from mafl_cli.scans import formats


@dataclass(frozen=True)
class _Hide:
    """What replaces names, and the voices that do."""

    names: Callable[[str], str]
    say: Say
    detail: Say


@contextmanager
def hidden(request: AttackRequest, say: Say, detail: Say) -> Iterator[_Hide]:
    """With `redact`, keep the names of the case's files out of every line, and of errors."""
    if not request.redact:
        yield _Hide(lambda text: text, say, detail)
        return
    names = Redaction(_inputs(request), request.out)
    try:
        yield _Hide(names, lambda line: say(names(line)), lambda line: detail(names(line)))
    except MaflError as exc:
        raise type(exc)(names(str(exc))) from None


def require_elsewhere(request: AttackRequest) -> None:
    """Raise UsageError if results would land among the DICOM files of the source, or take an input's place."""
    out, shown = request.out.resolve(), public_name(request.out)
    for image in () if request.volumes else request.images:
        folder = formats.folder_of(image)
        if folder is None:
            continue
        if out == folder or (folder in out.parents and formats.is_whole_folder(image)):
            raise UsageError(f"`out` {shown} lies in the scan's own folder: choose another place.")
    earlier = {path.resolve() for path in files.there(out)} if out.is_dir() else set()
    for path in _inputs(request):
        place = path.resolve()
        if earlier & {place, *place.parents}:
            raise UsageError(f"`out` {shown} holds {public_name(path)}, which is an input: choose another place.")


def _inputs(request: AttackRequest) -> list[Path]:
    """Every file or folder of the case that is read."""
    mask = request.recipe.mask if request.recipe is not None else None
    paths = (*request.images, *request.targets, *request.guides, *request.starts, request.within, mask)
    return [path for path in paths if path is not None]
