"""The options of `mafl attack` for many scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from mafl_cli.cli.groups import BATCH, under
from mafl_cli.cli.options import (
    LogFormat,
    MaybeFloat,
    MaybeInt,
    MaybePath,
    MaybeStr,
)
from mafl_cli.cli.reading import read_part
from mafl_cli.errors import UsageError

if TYPE_CHECKING:
    from mafl_cli.batch.batch import BatchRequest
    from mafl_cli.batch.dask_cluster import Cluster
    from mafl_cli.case.request import AttackRequest
    from mafl_cli.listing.cases import CaseFiles


@dataclass
class BatchOptions:
    """How a batch is worked through."""

    list_cases: Annotated[bool, under(BATCH, "--list", help="Print the cases, one per line, and stop.")] = False
    universal: Annotated[
        bool,
        under(
            BATCH,
            "--universal",
            help="Find one change for all scans, within --eps, and judge it on those held out; see docs/transfer.md.",
            rare=True,
        ),
    ] = False
    holdout: Annotated[
        MaybeStr,
        under(
            BATCH,
            "--holdout",
            metavar="SHARE|NAMES",
            help="With --universal: scans that the change is not made on, a share from 0 to 1 drawn by --seed, or "
            "names of cases separated by commas.",
            rare=True,
        ),
    ] = None
    workers: Annotated[
        int,
        under(
            BATCH,
            "--workers",
            "-j",
            min=1,
            help="Cases that run at the same time, each with a GPU of its own where there are several.",
        ),
    ] = 1
    threads: Annotated[
        MaybeInt,
        under(
            BATCH,
            min=1,
            help="CPU threads of each worker. [default: the cores divided by the workers; dask: 1]",
            rare=True,
        ),
    ] = None
    engine: Annotated[
        Literal["local", "dask"],
        under(BATCH, help="Workers on this machine, or on a Dask cluster (mafl[dask]).", rare=True),
    ] = "local"
    scheduler: Annotated[
        MaybeStr,
        under(BATCH, metavar="ADDRESS|FILE", help="Address of the Dask scheduler, or its scheduler file.", rare=True),
    ] = None
    slurm: Annotated[
        MaybePath,
        under(
            BATCH,
            metavar="TOML",
            help="Start --workers Dask workers by SLURM, with the settings in the table [slurm] of this file.",
            rare=True,
        ),
    ] = None
    case_timeout: Annotated[
        MaybeFloat,
        under(
            BATCH,
            "--case-timeout",
            metavar="SECONDS",
            help="Longest time of a case, in seconds; one that takes longer counts as failed.",
            rare=True,
        ),
    ] = None
    resume: Annotated[
        bool,
        under(
            BATCH,
            "--resume/--no-resume",
            help="Go on where an earlier run of the same settings stopped; --no-resume refuses a folder with results.",
            rare=True,
        ),
    ] = True
    retry_failed: Annotated[bool, under(BATCH, "--retry-failed", help="Try failed cases again.", rare=True)] = False
    num_parts: Annotated[
        MaybeInt,
        under(
            BATCH,
            min=1,
            help="Number of parts, for several machines: each works on every N-th case. [default: those of a "
            "SLURM array]",
            rare=True,
        ),
    ] = None
    part_id: Annotated[MaybeInt, under(BATCH, min=0, help="Number of this part, from 0.", rare=True)] = None
    log_format: Annotated[
        LogFormat,
        under(BATCH, help="Format of messages on stderr: text, or one JSON object per line.", rare=True),
    ] = "text"

    def require_together(self, several: bool) -> None:
        """Raise UsageError for options that do not go with one change for many scans."""
        if self.holdout is not None and not self.universal:
            raise UsageError("--holdout is for --universal: add it, or leave out --holdout.")
        if not self.universal:
            return
        if not several:
            raise UsageError("--universal needs several scans: give more, a folder of them, or a manifest.")
        alone = {
            "--workers": self.workers > 1,
            "--engine": self.engine != "local",
            "--num-parts": self.num_parts is not None,
            "--case-timeout": self.case_timeout is not None,
            "--retry-failed": self.retry_failed,
        }
        for option, given in alone.items():
            if given:
                raise UsageError(f"{option} cannot be used with --universal: one search sees all scans; leave it out.")

    def request(self, cases: Sequence[CaseFiles], attack: AttackRequest) -> BatchRequest:
        """What the options ask of a batch of these cases. Raises UsageError for options that do not go together."""
        from mafl_cli.batch.batch import BatchRequest
        from mafl_cli.listing.cases import redacted

        if self.case_timeout is not None and not 0 < self.case_timeout < float("inf"):
            raise UsageError(f"--case-timeout must be above 0 seconds, got {self.case_timeout:g}.")
        return BatchRequest(
            cases=tuple(redacted(cases) if attack.redact else cases),
            attack=attack,
            out=attack.out,
            workers=self.workers,
            threads=self.threads,
            part=read_part(self.num_parts, self.part_id),
            cluster=self._cluster(),
            case_timeout=self.case_timeout,
            retry_failed=self.retry_failed,
            overwrite=attack.overwrite,
        )

    def _cluster(self) -> Cluster | None:
        """The Dask cluster that was asked for."""
        if self.engine == "local":
            if self.scheduler is not None or self.slurm is not None:
                raise UsageError("--scheduler and --slurm are for --engine dask.")
            return None
        if self.case_timeout is not None:
            raise UsageError("--case-timeout is for --engine local: set a time limit in your scheduler instead.")
        if (self.scheduler is None) == (self.slurm is None):
            raise UsageError(
                "--engine dask needs either --scheduler (an address or a scheduler file) or --slurm FILE.toml."
            )
        from mafl_cli.batch.dask_cluster import Cluster

        return Cluster(scheduler=self.scheduler, slurm=self.slurm, workers=self.workers)
