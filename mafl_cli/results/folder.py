"""The result folder: how files get there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mafl_cli.errors import Interrupted, MaflError, UsageError, disk_full, is_disk_full, reason_of
from mafl_cli.names import public_name, sha256
from mafl_cli.results.files import PREDICTION_CLEAN, REPORT, TARGET, TICKET, is_result, there
from mafl_cli.system import interrupts, staging, streams


def is_stage(path: Path) -> bool:
    """Whether a folder is where an attack at work, or one that was killed, gathers what it will leave."""
    if not path.name.startswith(".mafl-") or not path.is_dir():
        return False
    names = staging.contents(path)
    # Else it is a figure, or a table.
    return not names or any(map(is_result, names))


def listed(stage: Path) -> list[dict[str, str]]:
    """Name and SHA-256 of every file below a folder; the files of a series by their path in it."""
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    return [{"name": path.relative_to(stage).as_posix(), "sha256": sha256(path)} for path in files]


_OVERWRITE = "choose another folder with `out`, or add `overwrite`"


@contextmanager
def staged(out: Path, *, overwrite: bool, advice: str = _OVERWRITE) -> Iterator[Path]:
    """A folder whose contents take the place of the results in `out` when the block ends well.

    After any error, an interrupt included, `out` is as it was before: earlier results untouched, nothing partial,
    and not even there if it was not there. Whatever ends the process, `out` has the old results whole or the new ones;
    see `staging`.

    Raises UsageError if results are there already (unless `overwrite`), with `advice`, or the folder cannot be made;
    DiskFullError if the disk fills up; Interrupted if that comes when the new results are in their place.
    """
    made = check_writable(out, overwrite=overwrite, advice=advice)
    try:
        with staging.workspace(out) as work:
            yield work.new
            _publish(work, out)
    except BaseException as exc:
        _unmake(made)
        if isinstance(exc, Exception) and not isinstance(exc, MaflError):
            if isinstance(exc, OSError):
                raise _cannot_write(out, exc) from exc
            if is_disk_full(exc):
                raise disk_full(public_name(out)) from exc
        raise


def _publish(work: staging.Workspace, out: Path) -> None:
    earlier = [path.name for path in there(out)]
    # A power cut costs the first results of a single run at most, and those can be made again.
    durable = bool(earlier) or (work.new / TICKET).exists()
    try:
        with interrupts.put_off():
            staging.publish(work, out, earlier=earlier, last=REPORT, durable=durable)
    except KeyboardInterrupt as exc:
        said = f"{public_name(out)}: interrupted when the results were in their place; they are whole."
        raise Interrupted(said, interrupts.exit_code(exc)) from exc


def check_writable(out: Path, *, overwrite: bool, advice: str = _OVERWRITE) -> list[Path]:
    """Make the folder `out`; returns the folders that had to be made, innermost first.

    Raises UsageError if it cannot be made or written to, or already holds results and `overwrite` is not set.
    """
    recover(out)
    found = there(out) if out.is_dir() else []
    # Masks alone are what `show_target` leaves: nothing that took an attack to make.
    kept = [path for path in found if path.name not in (PREDICTION_CLEAN, TARGET)]
    if kept and not overwrite:
        raise UsageError(f"{public_name(out)}: already holds results ({kept[0].name}); {advice}.")
    made: list[Path] = []
    try:
        for folder in (out, *out.parents):
            if folder.exists():
                break
            made.append(folder)
        out.mkdir(parents=True, exist_ok=True)
        with staging.workspace(out):
            pass
    except OSError as exc:
        _unmake(made)
        raise _cannot_write(out, exc) from exc
    return made


def _unmake(folders: Iterable[Path]) -> None:
    """Take empty folders away again."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def recover(out: Path) -> None:
    """Finish or take away what a run that was killed has left half done in a folder; see `system.staging.recover`."""
    staging.recover(out)
    # One that was about to exchange it lies beside it.
    staging.recover(out.resolve().parent)


@contextmanager
def written_to(out: Path) -> Iterator[None]:
    """Where the system refuses to write to a folder in the block: UsageError, or DiskFullError.

    A lock that another process holds is still a BlockingIOError.
    """
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as exc:
        raise _cannot_write(out, exc) from exc


def write_through(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then rename it there, so that `path` is whole or untouched.

    A link stays a link: the file behind it is replaced. What is not a file is written to: root could rename a file over
    /dev/null.

    Raises UsageError if the folder cannot be written to, DiskFullError if the disk is full.
    """
    try:
        if path.exists() and not path.is_file():
            write(path)
            return
        file = path.resolve()
        with staging.workspace(file.parent) as work:
            temporary = work.new / path.name
            write(temporary)
            staging.flush_file(temporary)
            temporary.replace(file)
    except OSError as exc:
        raise _cannot_write(path, exc, "choose another name") from exc


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file, whole or not at all. Raises as `write_through`."""
    write_through(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors=streams.ESCAPED))


def _cannot_write(path: Path, exc: OSError, advice: str = "choose another folder with `out`") -> MaflError:
    name = public_name(path)
    if is_disk_full(exc):
        return disk_full(name)
    return UsageError(f"{name}: cannot be written to ({reason_of(exc)}); {advice}.")
