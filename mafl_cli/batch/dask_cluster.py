"""Jobs on a Dask cluster that is there already, or on one that SLURM makes; the same rows as `batch.local.run`.

Paths travel, never voxels: every worker must see the same files under the same names, and run the same mafl. Both are
asked before the first job. Needs `pip install 'mafl[dask]'`.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from mafl_cli import __version__
from mafl_cli.batch.local import Job, Row, attack_one
from mafl_cli.errors import InputError, MaflError, UsageError
from mafl_cli.names import is_there, outside, public_name
from mafl_cli.network.source import Joined
from mafl_cli.results.folder import written_to
from mafl_cli.system import staging
from mafl_cli.system.documents import read_toml


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the workers are: a scheduler's address or file, or a TOML file with what `SLURMCluster` takes in [slurm].

    workers: for SLURM, how many to ask for. retries: of a job whose worker has died, on another one.
    """

    scheduler: str | None = None
    slurm: Path | None = None
    workers: int = 1
    retries: int = 2


def run(
    jobs: Sequence[Job],
    *,
    cluster: Cluster,
    out: Path,
    threads: int | None,
    on_row: Callable[[Job, Row], None],
) -> None:
    """Do all jobs on the cluster; arguments and rows as in `batch.local.run`.

    out: the folder of the run, in which the workers look for a new one to see that they share it.
    Raises: UsageError without Dask, without a scheduler, or when workers have another mafl or do not see the folder;
        MaflError when the scheduler goes away.
    """
    if not jobs:
        return
    with _client(cluster) as client:
        from distributed import as_completed
        from distributed.comm import CommClosedError

        _require_alike(client, out)
        # With the priority of their order, so that what is begun is what comes first.
        futures = {
            client.submit(
                _attack, _everywhere(job), threads, key=f"mafl-{job.case_id}-{uuid.uuid4().hex[:8]}",
                retries=cluster.retries, pure=False, priority=-number, resources=_resources(client),
            ): job
            for number, job in enumerate(jobs)
        }  # fmt: skip
        try:
            for future in as_completed(futures):
                job = futures.pop(future)
                on_row(job, _row_of(future, job))
                # Its result need not stay on the scheduler.
                future.release()
        except (CancelledError, CommClosedError) as exc:
            raise MaflError(
                "the Dask scheduler does not answer any more; finished cases are kept, and the same command goes "
                "on from there."
            ) from exc


def check(cluster: Cluster) -> None:
    """Ask for workers without having any, so that what cannot begin is refused before there is a folder of results.

    Raises: UsageError where there is no such scheduler, or no SLURM; InputError if SLURM would take no such job.
    """
    if cluster.slurm is None:
        with _client(cluster):
            return
    settings = slurm_settings(cluster.slurm)
    from dask_jobqueue import SLURMCluster

    command = SLURMCluster.job_cls.submit_command
    if shutil.which(command) is None:
        raise UsageError(
            f"`slurm` needs {command}, which is not here: give the command on a login node of the cluster."
        )
    script = _job(settings).job_script()
    with tempfile.TemporaryDirectory(prefix="mafl-") as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        # It says whether it would take the job, and does not.
        asked = subprocess.run([command, "--test-only", str(path)], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise _refused(cluster.slurm, asked.stderr, command)


def _attack(job: Job, threads: int | None) -> Row:
    """On a worker. A crash of the codec or the like is the worker's death, and Dask's to handle."""
    import torch

    torch.set_num_threads(threads or 1)
    return attack_one(job)


def _found(model: Any) -> Any:
    return model.resolve() if isinstance(model, Path) and is_there(model) else model


def _everywhere(job: Job) -> Job:
    """With paths that do not depend on where a worker was started."""
    request = job.request
    places: dict[str, Any] = {
        name: tuple(path.resolve() for path in getattr(request, name))
        for name in ("images", "targets", "guides", "starts")
    }
    places["out"] = request.out.resolve()
    # What is not a file has no place.
    model = request.model
    places["model"] = (
        replace(model, models=tuple(map(_found, model.models))) if isinstance(model, Joined) else _found(model)
    )
    places["within"] = None if request.within is None else request.within.resolve()
    if request.recipe is not None and request.recipe.mask is not None:
        places["recipe"] = replace(request.recipe, mask=request.recipe.mask.resolve())
    return replace(job, request=replace(request, **places))


def _row_of(future: Any, job: Job) -> Row:
    if future.status != "error":
        row: Row = future.result()
        return row
    kind = type(future.exception()).__name__
    message = f"{job.case_id}: its worker ended each time it was tried ({kind})."
    return Row.failed("Crashed", message)


@contextmanager
def _client(cluster: Cluster) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError as exc:
        raise UsageError("a Dask cluster needs Dask: pip install 'mafl[dask]'.") from exc
    # What it has to say of a scheduler that is gone is a traceback.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    made = None
    try:
        if cluster.slurm is not None:
            made = _slurm(cluster)
            client = Client(made)
        elif cluster.scheduler is None:
            raise UsageError(
                "a Dask cluster needs `scheduler` (tcp://HOST:PORT, or a scheduler file) or `slurm` (a TOML file)."
            )
        elif Path(cluster.scheduler).is_file():
            client = Client(scheduler_file=cluster.scheduler, timeout=30)
        else:
            client = Client(cluster.scheduler, timeout=30)
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"`scheduler`: no Dask scheduler answers there ({type(exc).__name__}): check the address."
        ) from exc
    try:
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=60 if made is None else 3600)
        if not client.scheduler_info()["workers"]:
            raise UsageError("`scheduler`: the Dask cluster does not have workers: start some.")
        yield client
    finally:
        client.close()
        if made is not None:
            made.close()


def _slurm(cluster: Cluster) -> Any:
    assert cluster.slurm is not None
    settings = slurm_settings(cluster.slurm)
    from dask_jobqueue import SLURMCluster

    try:
        made = SLURMCluster(**settings)
    except Exception as exc:
        raise _refused(cluster.slurm, str(exc).strip() or type(exc).__name__) from exc
    made.scale(cluster.workers)
    return made


def slurm_settings(path: Path) -> dict[str, Any]:
    """The table [slurm] of a TOML file, as `dask_jobqueue.SLURMCluster` takes it.

    Raises: UsageError without dask-jobqueue; InputError if there is no such table, or no job can be made of it.
    """
    try:
        import dask_jobqueue  # noqa: F401
    except ImportError as exc:
        raise UsageError("`slurm` needs dask-jobqueue: pip install 'mafl[dask]'.") from exc
    found = read_toml(path).get("slurm")
    if not isinstance(found, dict):
        raise InputError(
            f'{public_name(path)}: must hold a table [slurm], with lines like: cores = 4, memory = "16GB".'
        )
    settings = {"processes": 1, **found}
    try:
        _job(settings).job_script()
    except Exception as exc:
        raise _refused(path, str(exc).strip() or type(exc).__name__) from exc
    return settings


def _job(settings: Mapping[str, Any]) -> Any:
    """A job of a cluster with these settings. The cluster, if it refuses them, would be left half made."""
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.core import JobQueueCluster

    own = signature(JobQueueCluster.__init__).parameters
    taken = {key: value for key, value in settings.items() if key not in own}
    return SLURMCluster.job_cls("tcp://nobody:1", name="nobody", **taken)


def _refused(path: Path, why: str, who: str = "dask_jobqueue.SLURMCluster") -> InputError:
    first = outside((why.strip() or "it does not say why").splitlines()[0])[:200].rstrip(".:")
    return InputError(f"{public_name(path)}: {who} refuses its table [slurm]: {first}.")


def _require_alike(client: Any, out: Path) -> None:
    """Ask every worker for its version, and whether it sees the folder of the run."""
    with written_to(out), staging.workspace(out) as work:
        try:
            answers = client.run(_answer, str(work.new.resolve()))
        except Exception as exc:
            raise UsageError(
                f"`scheduler`: the workers cannot run mafl ({type(exc).__name__}): install it there."
            ) from exc
    for version, sees in answers.values():
        if version != __version__:
            raise UsageError(
                f"`scheduler`: a worker has mafl {version}, this is {__version__}: install the same version on both."
            )
        if not sees:
            raise UsageError("`scheduler`: a worker does not see the results folder: put it on a shared file system.")


def _answer(folder: str) -> tuple[str, bool]:
    return __version__, Path(folder).is_dir()


def _resources(client: Any) -> dict[str, int] | None:
    """One GPU for each job, if the workers have a resource of that name."""
    workers = client.scheduler_info()["workers"].values()
    return {"GPU": 1} if any("GPU" in worker["resources"] for worker in workers) else None
