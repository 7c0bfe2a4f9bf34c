"""Many cases: one bad scan must not cost the night, and whatever ends a run loses the cases in flight and no more."""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pytest
import torch
from commands import Threshold, mafl, scan_array
from typer.testing import Result

from mafl_cli.batch import batch, local, tables
from mafl_cli.batch.local import Job
from mafl_cli.case.request import AttackRequest
from mafl_cli.cli.reading import read_part
from mafl_cli.errors import InputError, MaflError
from mafl_cli.listing.cases import CaseFiles
from mafl_cli.results import batch_report, read
from mafl_cli.results.batch_report import Ticket
from mafl_cli.results.files import FAILED, REPORT, TICKET
from mafl_cli.system import locks, records, staging

ROOT = str(Path(__file__).resolve().parents[2])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
STEPS = ("--steps", 6)


@pytest.fixture(scope="module", autouse=True)
def _quick_workers() -> Iterator[None]:
    """Workers of batches in this process are forked from one that has PyTorch; those of `mafl` itself are spawned."""
    real = multiprocessing.get_context
    multiprocessing.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as patch:
        # Before Python 3.14 the process that is forked from is not told where to look for modules.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "support"), ROOT]))
        forkserver.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda way=None: real("forkserver" if way == "spawn" else way))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scans/ and masks/ of cases c0 to c5: c1 is no scan, c3 has no mask, c4 lies on another grid; and two models."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "scans").mkdir()
    (folder / "masks").mkdir()
    for number in range(6):
        scan = np.roll(scan_array(), number - 3, axis=1)
        nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scans" / f"c{number}.nii.gz")
        mask = np.roll(scan > 0.5, 2, axis=0).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, np.diag([1.0, 1, 1 + (number == 4), 1])), folder / "masks" / f"c{number}.nii.gz")
    (folder / "scans" / "c1.nii.gz").write_text("no scan")
    (folder / "masks" / "c3.nii.gz").unlink()
    torch.jit.script(Threshold(2)).save(folder / "model.ts")
    return folder


def command(data: Path, out: Path, *more: object) -> list[str]:
    return [
        str(part)
        for part in (
            "attack", data / "scans", "--target", data / "masks", "--model", data / "model.ts", "-o", out,
            "--device", "cpu", *STEPS, "--threads", 1, *more,
        )
    ]  # fmt: skip


def run(data: Path, out: Path, *more: object) -> Result:
    return mafl(*command(data, out, *more))


def contents(out: Path) -> dict[str, bytes]:
    """Everything but the reports of single cases, which have times in them."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parts[-2] != ".mafl" and (path.parent == out or path.name != "report.json")
    }


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = run(data, out)
    assert result.exit_code == 6, result.stderr
    return out


# --- isolation ----------------------------------------------------------------------------------------------------


def test_bad_cases_are_rows_with_reasons_and_the_rest_is_done(whole: Path) -> None:
    said = json.loads((whole / "report.json").read_text())
    assert {row["case_id"]: row["status"] for row in said["cases"]} == {
        "c0": "ok", "c1": "failed", "c2": "ok", "c3": "failed", "c4": "failed", "c5": "ok",
    }  # fmt: skip
    reasons = (whole / "failed.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in reasons] == ["c1", "c3", "c4"]
    assert "not a NIfTI file" in reasons[0]
    assert "no mask with this name" in reasons[1]
    assert "`resample_target`" in reasons[2]
    assert (said["aggregate"]["ok"], said["aggregate"]["failed"], said["aggregate"]["pending"]) == (3, 3, 0)
    table = (whole / "cases.csv").read_text().splitlines()
    assert len(table) == 7
    assert not list(whole.rglob(".mafl-*"))


def test_a_process_that_dies_is_a_failed_row_and_its_worker_is_replaced(data: Path, tmp_path: Path) -> None:
    rows = {}
    with _killer(tmp_path):
        local.run(
            [_job(data, tmp_path, "c0", steps=100_000), _job(data, tmp_path, "c2")],
            workers=1, threads=1, timeout=None, on_row=lambda job, row: rows.update({job.case_id: row}),
        )  # fmt: skip
    assert rows["c0"].status == "failed"
    assert rows["c0"].error.message == "c0: its process ended (SIGKILL, as when memory runs out)."
    assert rows["c2"].status == "ok"


def test_a_worker_that_dies_between_two_cases_costs_nothing(data: Path, tmp_path: Path) -> None:
    rows = {}

    def ended(job: Job, row: local.Row) -> None:
        rows[job.case_id] = row.status
        for process in multiprocessing.active_children():
            process.kill()
            process.join()

    local.run(
        [_job(data, tmp_path, "c0"), _job(data, tmp_path, "c2")], workers=1, threads=1, timeout=None, on_row=ended
    )
    assert rows == {"c0": "ok", "c2": "ok"}


@contextmanager
def _killer(out: Path) -> Iterator[None]:
    """Kills the worker that is at the first case."""

    def watch() -> None:
        while not list(out.glob("c0/.mafl-*")):
            time.sleep(0.02)
        for process in multiprocessing.active_children():
            process.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    thread.join(1)


def _job(data: Path, out: Path, case_id: str, steps: int = 6) -> Job:
    from mafl_cli.config import preset

    hard = {"goal_iou": 1.0, "goal_hit": 1.0, "patience": 1_000_000} if steps > 1000 else {}
    request = AttackRequest(
        model=data / "model.ts", images=(data / "scans" / f"{case_id}.nii.gz",), out=out / case_id, device="cpu",
        targets=(data / "masks" / f"{case_id}.nii.gz",), config=preset("mafl", steps=steps, **hard),
    )  # fmt: skip
    return Job(case_id, request, Ticket(request="", files=()))


def test_a_case_that_takes_too_long_has_failed(data: Path, tmp_path: Path) -> None:
    rows = {}
    local.run(
        [_job(data, tmp_path, "c0", steps=1_000_000), _job(data, tmp_path, "c2")],
        workers=1, threads=1, timeout=20, on_row=lambda job, row: rows.update({job.case_id: row}),
    )  # fmt: skip
    assert rows["c0"].error.message == "c0: took longer than 20 s (`case_timeout`)."
    assert rows["c2"].status == "ok"


def test_a_worker_that_is_killed_before_it_has_begun_is_replaced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hired, killed = local._Worker.hire, [], 1

    def hire(*given: Any) -> Any:
        hired.append(real(*given))
        if len(hired) <= killed:
            hired[-1].process.kill()
        return hired[-1]

    monkeypatch.setattr(local._Worker, "hire", hire)
    rows = {}
    jobs = [_job(data, tmp_path, "c2")]
    local.run(jobs, workers=1, threads=1, timeout=None, on_row=lambda job, row: rows.update({job.case_id: row}))
    assert (len(hired), rows["c2"].status) == (2, "ok")
    killed = 100
    hired.clear()
    with pytest.raises(MaflError, match="a worker process ended before it had begun"):
        local.run(jobs, workers=1, threads=1, timeout=None, on_row=lambda job, row: None)
    assert len(hired) == 4


# --- going on -----------------------------------------------------------------------------------------------------


def test_the_same_command_leaves_alone_what_is_done(data: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("c*/*")}
    result = run(data, whole)
    assert result.exit_code == 6
    assert "were done before" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.glob("c[025]/*")} == {
        path: when for path, when in before.items() if path.parent.name in ("c0", "c2", "c5")
    }


def test_killed_at_any_moment_a_run_goes_on_and_ends_as_if_nothing_had_happened(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "mafl_cli", *command(data, out)],
        env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (out / "c0" / "report.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # The workers see that nobody is there any more.
    time.sleep(1.5)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("c*/report.json")}
    result = run(data, out)
    assert result.exit_code == 6, result.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert contents(out).keys() == contents(whole).keys()
    different = [name for name, found in contents(out).items() if found != contents(whole)[name]]
    assert not different


def test_an_interrupt_keeps_what_is_finished_and_is_exit_130(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "mafl_cli", *command(data, out, "--steps", 100_000, "--goal-iou", 1, "--goal-hit", 1)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # A shell's background jobs ignore interrupts, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(out.glob("c*/.mafl-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (
        130, "mafl: interrupted; what is finished is kept, and the same command goes on from there.",
    )  # fmt: skip
    assert (out / "report.json").is_file()
    assert not list(out.rglob(".mafl-*"))


def test_an_interrupt_while_cases_are_looked_at_leaves_a_table_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path, *rest: object) -> None:
        (folder / ".mafl-work-halfmade").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "settle", interrupt)
    result = run(data, tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (130, 1)
    said = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {row["status"] for row in said["cases"]} == {"pending"}
    assert not list((tmp_path / "out").rglob(".mafl-*"))


def test_changed_inputs_are_attacked_again_and_touched_ones_are_not(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    out = tmp_path / "out"
    run(copy, out)
    before = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("c*/report.json")}
    os.utime(copy / "scans" / "c0.nii.gz")
    image = nib.load(copy / "scans" / "c2.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 0.99, image.affine), copy / "scans" / "c2.nii.gz")
    run(copy, out)
    after = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("c*/report.json")}
    assert [name for name in before if before[name] != after[name]] == ["c2"]


def test_a_run_goes_on_when_nobody_reads_its_log_any_more(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "mafl_cli", *command(data, out)],
        env=ENVIRONMENT, stderr=write, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    os.close(read)
    assert process.wait(timeout=120) == 6
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    "known", ["{", "{}", "[]", '{"settings": "a", "cases": ["../c0"]}', '{"settings": 1, "cases": 1}']
)
def test_a_damaged_list_of_cases_is_bad_input(data: Path, tmp_path: Path, known: str) -> None:
    (tmp_path / "out" / ".mafl").mkdir(parents=True)
    (tmp_path / "out" / ".mafl" / "run.json").write_text(known)
    for result in (
        mafl("status", tmp_path / "out"),
        mafl("merge", tmp_path / "out", "-o", tmp_path / "all"),
        run(data, tmp_path / "out"),
    ):
        assert (result.exit_code, "run.json: is damaged" in result.stderr) == (3, True)


def test_another_input_of_the_same_size_and_time_is_another_input(data: Path, tmp_path: Path) -> None:
    """As what comes out of an archive has in common."""
    for name in ("a", "b"):
        image = nib.load(data / "scans" / ("c0.nii.gz" if name == "a" else "c2.nii.gz"))
        for kind, array in (("scan", image.get_fdata()), ("mask", image.get_fdata() > 0.6)):
            path = tmp_path / f"{kind}-{name}.nii"
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
            os.utime(path, (1e9, 1e9))
    made = []
    for rows in (("a,a", "a,a", "b,b"), ("b,a", "a,b", "b,")):
        lines = [
            f"p{number},scan-{scan}.nii,{mask and f'mask-{mask}.nii'}\n"
            for number, (scan, mask) in enumerate(row.split(",") for row in rows)
        ]
        (tmp_path / "cases.csv").write_text("case,image,target\n" + "".join(lines))
        result = mafl(
            "attack", tmp_path / "cases.csv", "--target", "erase:1", "--model", data / "model.ts", "-o",
            tmp_path / "out", *STEPS, "--device", "cpu", "--threads", 1,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        made.append([(tmp_path / "out" / f"p{number}" / "adversarial.nii.gz").read_bytes() for number in range(3)])
        assert "done before" not in result.stderr
    assert all(before != after for before, after in zip(*made, strict=True))


def test_a_mask_for_all_cases_counts_by_what_is_in_it(data: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    rest = ["--model", data / "model.ts", *STEPS, "--device", "cpu", "--threads", 1]
    for target in (f"copy:{mask}", mask):
        shutil.copy(data / "masks" / "c0.nii.gz", mask)
        out = tmp_path / f"out{len(str(target))}"
        command = ["attack", data / "scans" / "c0.nii.gz", data / "scans" / "c2.nii.gz", "--target", target, "-o", out]
        assert mafl(*command, *rest).exit_code == 0
        os.utime(mask)
        assert "2 of 2 cases were done before" in mafl(*command, *rest).stderr
        shutil.copy(data / "masks" / "c5.nii.gz", mask)
        result = mafl(*command, *rest)
        assert result.exit_code == 2
        assert "other settings" in result.stderr


def test_an_interrupt_while_workers_start_is_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "mafl_cli", *command(data, out, "--workers", 2)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), start_new_session=True,
    )  # fmt: skip
    while not (out / ".mafl" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    # As a terminal does: to all processes.
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_results_that_are_no_longer_whole_are_made_again(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    report = (out / "c0" / "report.json").read_bytes()
    # As a full disk, a user and a run that was killed leave them.
    (out / "c0" / "report.json").write_bytes(report[:200])
    (out / "c2" / "adversarial.nii.gz").unlink()
    shutil.copy(out / "c1" / "failed.json", out / "c5")
    found = json.loads(mafl("status", out, "--json", "-").stdout)
    assert (found["ok"], found["failed"], found["pending"]) == (1, 4, 1)
    result = run(data, out)
    assert result.exit_code == 6, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines() if ": done" in line] == ["c0", "c2"]
    assert contents(out) == contents(whole)


def test_other_settings_need_another_folder_or_overwrite(data: Path, whole: Path, tmp_path: Path) -> None:
    result = run(data, whole, "--momentum", 0.5)
    assert result.exit_code == 2
    assert "holds results of other settings" in result.stderr
    shutil.copytree(whole, tmp_path / "killed")
    (tmp_path / "killed" / "report.json").unlink()
    for out in (whole, tmp_path / "killed"):
        assert run(data, out, "--no-resume").exit_code == 2


def test_failed_cases_are_tried_again_when_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = (data / "scans" / "c1.nii.gz").read_bytes()
    only = ["attack", data / "scans" / "c0.nii.gz", data / "scans" / "c1.nii.gz", "--target", data / "masks"]
    rest = ["--model", data / "model.ts", "-o", out, *STEPS, "--device", "cpu", "--threads", 1]
    assert mafl(*only, *rest).exit_code == 6
    assert "2 of 2 cases were done before" in mafl(*only, *rest).stderr
    result = mafl(*only, *rest, "--retry-failed")
    assert "1 of 2 cases were done before" in result.stderr
    assert result.exit_code == 6
    assert (data / "scans" / "c1.nii.gz").read_bytes() == broken


def test_two_runs_at_the_same_cases_are_refused(data: Path, whole: Path) -> None:
    import fcntl

    # The same part; and a part of another number, whose cases may be the same.
    for name, lock in (("part-0-of-1.lock", fcntl.LOCK_EX), ("parts-of-3.lock", fcntl.LOCK_SH)):
        with (whole / ".mafl" / name).open("a+") as file:
            fcntl.flock(file, lock)
            result = run(data, whole)
        assert result.exit_code == 2
        assert "another mafl process is using it" in result.stderr
    with (whole / ".mafl" / "parts-of-1.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert run(data, whole).exit_code == 6


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_reason_not_to_run(
    data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "were done before" in run(data, whole).stderr


# --- many machines ------------------------------------------------------------------------------------------------


def test_two_parts_merged_equal_one_run(data: Path, whole: Path, tmp_path: Path) -> None:
    for part in (0, 1):
        result = run(data, tmp_path / f"part{part}", "--num-parts", 2, "--part-id", part)
        assert result.exit_code == 6, result.stderr
    merged = mafl("merge", tmp_path / "part0", tmp_path / "part1", "-o", tmp_path / "all")
    assert merged.exit_code == 0, merged.stderr
    assert contents(tmp_path / "all") == contents(whole)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the name of each case whose report is read."""
    names: list[str] = []
    finished = read.finished

    def counted(folder: Path) -> Any:
        names.append(folder.name)
        return finished(folder)

    monkeypatch.setattr(read, "finished", counted)
    return names


def test_a_finished_batch_goes_on_by_one_reading_of_each_report(
    data: Path, whole: Path, tmp_path: Path, readings: list[str]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    result = run(data, out)
    assert (result.exit_code, sorted(readings)) == (6, ["c0", "c2", "c5"])
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("change", ["gone", "another", "failed"])
def test_a_report_that_changes_after_it_was_read_is_read_again_for_the_tables(
    data: Path, whole: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "out"))
    path = out / "c0" / REPORT

    def changed(*rest: object) -> None:
        if change == "gone":
            path.unlink()
        elif change == "another":
            found = json.loads(path.read_text())
            found["cases"][0]["attack"]["goal_reached"] ^= True
            path.write_text(json.dumps(found))
        else:
            shutil.copy(out / "c1" / FAILED, out / "c0" / FAILED)

    monkeypatch.setattr(batch, "_attack", changed)
    run(data, out)
    after = (out / REPORT).read_bytes()
    assert after != (whole / REPORT).read_bytes()
    tables.aggregate(out)
    assert (out / REPORT).read_bytes() == after


def test_merging_reads_each_report_once(whole: Path, tmp_path: Path, readings: list[str]) -> None:
    merged = tables.merge([whole], tmp_path / "all")
    assert sorted(readings) == sorted(row.case_id for row in merged.cases if row.error is None)
    assert contents(tmp_path / "all") == contents(whole)


def test_a_full_disk_is_no_failure_of_a_case(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second case finds no room; with room, the same command goes on."""
    out, publish, full = tmp_path / "out", staging.publish, [False]

    def in_this_process(jobs: Sequence[Job], *, on_row: Callable[[Job, local.Row], None], **_: object) -> None:
        for job in jobs:
            on_row(job, local.attack_one(job))
            full[0] = not full[0]

    def cramped(*arguments: Any, **more: Any) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(*arguments, **more)

    monkeypatch.setattr(local, "run", in_this_process)
    monkeypatch.setattr(staging, "publish", cramped)
    scans = [data / "scans" / f"{case}.nii.gz" for case in ("c0", "c2")]
    rest = ["-t", "erase:1", "-m", data / "model.ts", "-o", out, "--steps", 2, "--device", "cpu"]
    result = mafl("attack", *scans, *rest)
    said = "mafl: out: no space left on the disk; make room: what is finished is kept, and the same command goes on"
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(said)
    found = json.loads(mafl("status", out, "--json", "-").stdout)
    assert (found["ok"], found["failed"], found["pending"]) == (1, 0, 1)
    assert not list(out.rglob(".mafl-*"))
    assert not (out / "c2").exists()
    full[0] = False
    result = mafl("attack", *scans, *rest)
    assert (result.exit_code, "1 of 2 cases were done before" in result.stderr) == (0, True)


def test_runs_are_merged_whole_or_not_at_all(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, out = tmp_path / "broken", tmp_path / "all"
    shutil.copytree(whole, broken)
    (broken / "c1" / "failed.json").write_text('{"error": {}}')
    assert mafl("merge", broken, "-o", tmp_path / "damaged").exit_code == 0
    rows = json.loads((tmp_path / "damaged" / "report.json").read_text())["cases"]
    assert "is damaged" in next(row["error"]["message"] for row in rows if row["case_id"] == "c1")
    copy, copied = shutil.copy2, []

    def cramped(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(source, target)

    def no_link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(shutil, "copy2", cramped)
    result = mafl("merge", whole, "-o", out)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "no space left on the disk" in result.stderr
    assert not out.exists()
    monkeypatch.undo()
    assert mafl("merge", whole, "-o", out).exit_code == 0
    assert contents(out) == contents(whole)


def test_a_slurm_array_takes_its_parts_and_may_share_the_folder(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for task in (3, 5):
        for key, value in {"ID": task, "MIN": 3, "MAX": 5, "STEP": 2, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
        assert "part" in run(data, out).stderr
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    ("array", "part"),
    [
        ({"ID": 5, "MIN": 3, "MAX": 5, "STEP": 2, "COUNT": 2}, (1, 2)),
        ({"ID": 7, "MIN": 1, "MAX": 9}, (6, 9)),
        ({"ID": 1, "COUNT": 2}, (1, 2)),
        ({}, (0, 1)),
    ],
)
def test_the_part_is_what_slurm_says(array: dict[str, int], part: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in array.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    assert read_part(None, None) == part
    assert read_part(8, 3) == (3, 8)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        # --array=1,5,7: three tasks would do three of seven parts.
        ({"ID": 5, "MIN": 1, "MAX": 7, "STEP": 1, "COUNT": 3}, "not evenly spaced"),
        ({"ID": 2, "COUNT": 2}, "not one of the 2"),
        ({"ID": 4, "MIN": 3, "MAX": 5, "STEP": 2}, "not one of the 2"),
        ({"ID": 2}, "not how many there are"),
    ],
    ids=["holes", "from 1 on", "between", "no count"],
)
def test_an_array_that_would_leave_cases_out_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: dict[str, int], why: str
) -> None:
    for key, value in array.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{key}", str(value))
    result = run(data, tmp_path / "out")
    assert (result.exit_code, why in result.stderr) == (2, True)


@contextmanager
def dask_cluster(tmp_path: Path, workers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler, whose file is scheduler.json, and its workers, as processes."""
    pytest.importorskip("distributed")
    where = ("--scheduler-file", str(tmp_path / "scheduler.json"), "--no-dashboard")
    commands: list[tuple[str, ...]] = [("dask_scheduler", *where, "--port", "0")]
    commands += [("dask_worker", *where, "--nthreads", "1", "--no-nanny")] * workers
    started = []
    try:
        for name, *options in commands:
            line = [sys.executable, "-m", f"distributed.cli.{name}", *options]
            started.append(subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.DEVNULL))
        yield started
    finally:
        for each in started:
            each.kill()
            each.wait()


def on_dask(data: Path, out: Path, tmp_path: Path, *more: object) -> subprocess.Popen[str]:
    arguments = command(data, out, "--engine", "dask", "--scheduler", tmp_path / "scheduler.json", *more)
    return subprocess.Popen(
        [sys.executable, "-m", "mafl_cli", *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )


def wait_for(out: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    while not list(out.glob(pattern)) and process.poll() is None:
        time.sleep(0.01)


def test_a_dask_cluster_makes_the_same_files_even_if_a_worker_is_killed(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with dask_cluster(tmp_path, workers=2) as started:
        process = on_dask(data, out, tmp_path)
        wait_for(out, "c*/.mafl-*", process)
        started[1].kill()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 6, said
    assert contents(out) == contents(whole)


def test_when_the_scheduler_goes_away_no_case_has_failed_for_that(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with dask_cluster(tmp_path, workers=1) as started:
        process = on_dask(data, out, tmp_path)
        wait_for(out, "c*/report.json", process)
        started[0].kill()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith(
        "mafl: the Dask scheduler does not answer any more; finished cases are kept"
    )
    failed = {line.split("\t")[0] for line in (out / "failed.txt").read_text().splitlines()}
    assert failed <= {"c1", "c3", "c4"}


def test_dask_says_what_it_needs(data: Path, tmp_path: Path) -> None:
    result = run(data, tmp_path / "out", "--engine", "dask")
    assert result.exit_code == 2
    assert "needs either --scheduler" in result.stderr


def test_slurm_workers_are_asked_for_as_the_file_says(tmp_path: Path) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    from mafl_cli.batch.dask_cluster import slurm_settings

    path = tmp_path / "cluster.toml"
    path.write_text('[slurm]\nqueue = "gpu"\ncores = 4\nmemory = "16GB"\njob_extra_directives = ["--gres=gpu:1"]\n')
    with jobqueue.SLURMCluster(**slurm_settings(path), scheduler_options={"dashboard": False, "port": 0}) as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p gpu" in script
    assert "#SBATCH --gres=gpu:1" in script


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("slurm = 3", "must hold a table"),
        ("[[slurm]]", "must hold a table"),
        ("[slurm]\ncores = " + 1500 * "[", "nested too deeply"),
        ("[slurm]\ncores = " + 5000 * "9", "too many digits"),
        ("[slurm]\ncores = \udcff", "is not TOML (it is not UTF-8 text"),
        ('[slurm]\nmemory = "16GB"', "refuses its table"),
        ('[slurm]\ncores = 4\nmemory = "much"', "refuses its table"),
        ("[slurm]\ncores = 4\nmemory = [1]", "refuses its table"),
        ('[slurm]\ncores = {a = 1}\nmemory = "16GB"', "refuses its table"),
        ('[slurm]\ncores = 4\nmemory = "16GB"\nno_such_word = 1', "refuses its table"),
        ('[slurm]\ncores = 4\nmemory = "16GB"\njob_extra_directives = 5', "refuses its table"),
    ],
    ids=lambda text: text[:24],
)
def test_a_table_that_slurm_workers_cannot_be_made_from_is_bad_input(tmp_path: Path, text: str, why: str) -> None:
    pytest.importorskip("dask_jobqueue")
    from mafl_cli.batch.dask_cluster import slurm_settings

    path = tmp_path / "cluster.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"^cluster\.toml: .*" + re.escape(why)) as caught:
        slurm_settings(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("files", [5, None, {}, "x"], ids=str)
def test_a_damaged_ticket_is_that_of_no_finished_case(whole: Path, tmp_path: Path, files: object) -> None:
    case = CaseFiles(case_id="c0", images=(tmp_path / "gone.nii",))
    folder = Path(shutil.copytree(whole / "c0", tmp_path / "c0"))
    ticket = json.loads((folder / TICKET).read_text())
    (folder / TICKET).write_text(json.dumps({**ticket, "files": files}))
    today = Ticket(request=ticket["request"], files=tuple(ticket["files"]))
    assert batch._row_if_done(folder, today, case) is None


@pytest.mark.parametrize("damage", ["version", "value"])
def test_a_report_of_another_version_is_refused_in_one_sentence_and_a_damaged_one_is_made_again(
    data: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    path = out / "c0" / REPORT
    found = json.loads(path.read_text())
    if damage == "version":
        found["schema_version"] = "1.4.0"
    else:
        found["cases"][0]["attack"]["outcome"] = "The goal was reached."
    path.write_text(json.dumps(found))
    if damage == "version":
        said = "c0/report.json: is a report of schema 1.4.0; this mafl reads 2.0.0: "
        result = run(data, out)
        assert result.exit_code == 2
        assert said in result.stderr.splitlines()[-1]
        for command in (("status", out), ("merge", out, "-o", tmp_path / "all")):
            result = mafl(*command)
            assert (result.exit_code, result.stderr) == (3, f"mafl: {said}attack the scan again.\n")
        assert json.loads(path.read_text()) == found
    result = run(data, out, *(["--overwrite"] if damage == "version" else []))
    assert result.exit_code == 6, result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines() if ": done" in line] == ["c0"]
    assert contents(out) == contents(whole)


def test_the_report_of_a_batch_is_typed_and_fits_its_schema(whole: Path) -> None:
    found = json.loads((whole / REPORT).read_text())
    jsonschema.Draft202012Validator(json.loads(batch_report.SCHEMA.read_text())).validate(found)
    assert records.plain(records.read(batch_report.Batch, found, REPORT)) == found


@pytest.mark.parametrize(
    ("sbatch", "code", "words"),
    [
        (None, 2, "mafl: --slurm needs sbatch, which is not here: give the command on a login node of the cluster.\n"),
        (
            "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1",
            3,
            "mafl: cluster.toml: sbatch refuses its table [slurm]: sbatch: error: invalid partition specified: gpu.\n",
        ),
    ],
    ids=["none", "refuses"],
)
def test_without_a_slurm_that_takes_the_job_nothing_is_begun(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str | None, code: int, words: str
) -> None:
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "cluster.toml").write_text('[slurm]\nqueue = "gpu"\ncores = 4\nmemory = "16GB"\n')
    (tmp_path / "bin").mkdir()
    if sbatch is not None:
        (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\n{sbatch}\n")
        (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    result = run(data, tmp_path / "out", "--engine", "dask", "--slurm", tmp_path / "cluster.toml", "-q")
    assert (result.exit_code, result.stderr) == (code, words)
    assert not (tmp_path / "out").exists()


# --- looking at it ------------------------------------------------------------------------------------------------


def test_status_tells_how_far_a_run_is_and_what_a_case_takes(whole: Path) -> None:
    found = json.loads(mafl("status", whole, "--json", "-").stdout)
    assert (found["ok"], found["failed"], found["pending"], found["running"]) == (3, 3, 0, 0)
    assert set(found["mean_seconds"]) == {"read", "lift", "attack", "check", "write", "measure"}
    assert found["peak_resident_bytes"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_peak_memory_of_a_process_is_its_own() -> None:
    """What getrusage says begins with what the parent held."""
    held = np.ones(2**27)
    asked = "import torch; from mafl_cli.case import memory; print(memory.used(torch.device('cpu')))"
    said = subprocess.run([sys.executable, "-c", asked], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert 2**26 < ast.literal_eval(said.stdout)["peak_resident_bytes"] < held.nbytes


def test_what_a_killed_run_left_half_made_is_not_running(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "c0")
    (out / "c0" / ".mafl-half").mkdir(parents=True)

    def counts() -> tuple[int, int]:
        found = json.loads(mafl("status", out, "--json", "-").stdout)
        return found["running"], found["pending"]

    assert counts() == (0, 1)
    with locks.held(out / ".mafl" / "part-0-of-1.lock"):
        assert counts() == (1, 0)


def test_parts_that_end_together_write_their_tables_one_after_the_other(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "c0")
    last = threading.Thread(target=tables.aggregate, args=(out,))
    with locks.held(out / ".mafl" / "tables.lock"):
        last.start()
        last.join(0.5)
        assert last.is_alive()
        shutil.copytree(whole / "c0", out / "c0")
    last.join(60)
    assert (out / "report.json").read_bytes() == (whole / "report.json").read_bytes()


def test_evaluate_judges_a_batch_and_fails_for_its_failed_cases(whole: Path) -> None:
    result = mafl("evaluate", whole, "--fail-if", "psnr_db > 1000", "--json", "-")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert [(case["case_id"], case["status"]) for case in found["cases"]] == [
        ("c0", "ok"), ("c1", "failed"), ("c2", "ok"), ("c3", "failed"), ("c4", "failed"), ("c5", "ok"),
    ]  # fmt: skip
    assert "not a NIfTI file" in found["cases"][1]["error"]["message"]


def test_a_batch_that_was_cut_short_is_judged_by_all_its_cases(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "runs" / "night")
    (tmp_path / "runs" / "night" / "report.json").unlink()
    (tmp_path / "runs" / "night" / "c5" / "report.json").unlink()
    for folder in (tmp_path / "runs", tmp_path / "runs" / "night"):
        result = mafl("evaluate", folder, "--fail-if", "psnr_db > 1000", "--json", "-")
        assert result.exit_code == 5
        cases = {case["case_id"]: case["status"] for case in json.loads(result.stdout)["cases"]}
        assert (len(cases), cases["c0"], cases["c1"], cases["c5"]) == (6, "ok", "failed", "failed")


def test_a_page_of_a_batch_has_its_failed_cases_too(whole: Path, tmp_path: Path) -> None:
    result = mafl("visualize", whole, "-o", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    text = (tmp_path / "page.html").read_text()
    assert "not a NIfTI file" in text
    assert '"case_id":"c5"' in text


def test_redacted_batches_name_no_case(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(data, out, "--redact")
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.suffix in (".json", ".csv", ".txt"))
    for name in ("c0", "c1", "c2", "c3", "c4", "c5"):
        assert not re.search(rf"(?<![0-9a-f-]){name}(?![0-9a-f])", result.stderr + result.stdout + written.decode())
        assert not (out / name).exists()
    assert REPORT in {path.name for path in out.iterdir()}


def test_redacted_cases_of_one_scan_stay_two_in_logs_of_an_object_a_line_too(data: Path, tmp_path: Path) -> None:
    lines = [f"anna,{data}/scans/c0.nii.gz,{data}/masks/{mask}.nii.gz" for mask in ("c0", "c5")]
    lines = ["case,image,target", lines[0], lines[1].replace("anna", "anna-later"), "berta,,"]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    rest = ["--model", data / "model.ts", "-o", tmp_path / "out", *STEPS, "--device", "cpu", "--redact"]
    result = mafl("attack", tmp_path / "cases.csv", *rest, "--log-format", "json")
    assert result.exit_code == 6
    said = (tmp_path / "out" / "report.json").read_text()
    assert json.loads(said)["aggregate"]["ok"] == 2
    assert not any(name in said + result.stderr + result.stdout for name in ("anna", "berta"))
    log = [json.loads(line) for line in result.stderr.splitlines()]
    logged = {line["case_id"]: line["status"] for line in log if "case_id" in line}
    assert logged == {row["case_id"]: row["status"] for row in json.loads(said)["cases"]}
    assert sorted(logged.values()) == ["failed", "ok", "ok"]
    assert log[-1]["level"] == "error"


def test_a_file_in_the_place_of_a_case_stops_the_batch_before_it_begins(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c5").write_text("")
    result = run(data, tmp_path)
    assert result.exit_code == 2
    assert "a file lies where the results of c5 belong" in result.stderr
    assert mafl("merge", tmp_path, "-o", tmp_path / "c5").exit_code in (2, 3)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_timeout_is_a_time(data: Path, tmp_path: Path, seconds: str) -> None:
    result = run(data, tmp_path / "out", "--case-timeout", seconds)
    assert (result.exit_code, "--case-timeout" in result.stderr) == (2, True)


def test_cases_are_listed_before_they_are_run(data: Path) -> None:
    result = mafl("attack", data / "scans", "--target", data / "masks", "--list")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [f"c{n}" for n in range(6)]
    assert "no mask with this name" in result.stdout


def test_a_list_has_a_line_for_each_case_whatever_its_files_are_called(data: Path, tmp_path: Path) -> None:
    for name in ("a\nb.nii.gz", "\udcff.nii.gz", "1.2.840.113619.2.5.nii.gz"):
        shutil.copy(data / "scans" / "c0.nii.gz", tmp_path / name)
    result = mafl("attack", tmp_path, "--target", "erase:1", "--list")
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
    assert "1.2.840" not in result.stdout
