"""The judge of `tools/fuzz.py`: what must not be seen is seen."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import mafl

if sys.platform != "linux":
    pytest.skip("forks and limits are Linux's", allow_module_level=True)

pytest.importorskip("highdicom")

from fuzzing import counts, drive, judge, stock
from fuzzing.forks import Child, Limits, Room

# In a fork of its own the command warns as it does outside of tests, and the judge looks whether it did.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_the_same_seed_is_the_same_order() -> None:
    assert drive.order(1, 200) == drive.order(1, 200)
    assert {name for name, _ in drive.order(1, 20)} == set(drive.READERS)


def _say(text: str, code: int) -> Callable[[], int]:
    def work() -> int:
        print(text, file=sys.stderr)
        return code

    return work


def _leave(code: int, where: str) -> Callable[[], int]:
    def work() -> int:
        (Path(where) if where else Path(os.environ["TMPDIR"]) / "left").write_text("x")
        print("mafl: no.", file=sys.stderr)
        return code

    return work


def _take(size: int) -> int:
    assert len(bytearray(size)) == size
    return 0


def _hang() -> int:
    time.sleep(60)
    return 0


def _crash() -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


@pytest.mark.parametrize(
    ("work", "kinds"),
    [
        (_say("", 0), set()),
        (_say("mafl: scan.nii: is empty.", 3), set()),
        (_say("mafl: internal error.", 1), {"exit 1"}),
        (_say("what", 77), {"exit code"}),
        (_say("Traceback (most recent call last):\nmafl: no.", 3), {"traceback"}),
        (_say(f"mafl: {stock.MARK} is no scan.", 3), {"marker"}),
        (_say("mafl: one.\nmafl: two.", 3), {"sentence"}),
        (_say("no name before it.", 3), {"sentence"}),
        (_say("UserWarning: odd", 0), {"noise"}),
        (_say("mafl: \x1b[31mred.", 3), {"control character"}),
        (_leave(3, "half.nii"), {"left behind"}),
        (_leave(3, ""), {"left in temporary"}),
        (_leave(3, "given.nii"), {"input changed"}),
        (_leave(0, "out"), set()),
        (lambda: _say(f"mafl: {Path.cwd()}: no.", 3)(), {"path"}),
        (lambda: _take(2**28), {"memory"}),
        (_hang, {"hang"}),
        (_crash, {"crash"}),
    ],
)
def test_what_must_not_be_seen_is_seen(tmp_path: Path, work: Callable[[], int], kinds: set[str]) -> None:
    room = Room(tmp_path / "room").make()
    (room.place / "given.nii").write_bytes(b"good")
    before = judge.Before.of(room.place)
    ended = Child(room, work, Limits(wall_s=1.0 if work is _hang else 60.0)).wait()
    largest = ended.peak_bytes - 1 if kinds == {"memory"} else judge.LARGEST
    seen = judge.judge(room, judge.Trial(("x",), "", results=("out",)), before, ended, largest)
    assert {each.kind for each in seen} == kinds


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[drive.Fuzz]:
    """Good files, made in this process, that has loaded PyTorch and the readers already."""
    work = tmp_path_factory.mktemp("fuzz")
    fuzz = drive.Fuzz(work, work / "found", seed=0)
    root = fuzz.stock.root
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command = drive.whole_command()
        patch.setattr("typer.main.get_command", lambda _: command)
        # Each fork would need them anew.
        drive.load_all_of_mafl()
        real = multiprocessing.get_context
        patch.setattr(multiprocessing, "get_context", lambda method=None: real("fork" if method else None))
        stock.scans_and_models(root)
        patch.chdir(root)
        for name, arguments in stock.RUNS.items():
            assert mafl(*arguments).exit_code == 0, name
        yield fuzz


def test_thirty_of_its_inputs_show_nothing_that_must_not_be_seen(fuzz: drive.Fuzz) -> None:
    drive.readers(fuzz, drive.order(fuzz.seed, 30), float("inf"))
    assert fuzz.examples == {}
    whole = counts.total(fuzz.parts.values())
    assert (set(fuzz.parts), whole.inputs + whole.not_made) == (set(drive.READERS), 30)


def test_figures_are_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{counts.BEGIN}\nold\n{counts.END}\nafter\n")
    part = counts.Part(inputs=3, exits={0: 1, 3: 2}, kinds={"crash": 1, "unheard of": 2})
    settings = {"commit": "1234567", "command": "python tools/fuzz.py"}
    found = counts.as_json({"nifti": part, "mask": counts.Part(inputs=7)}, {"nifti: crash: x": 1}, {}, settings)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "counts.json").write_text(json.dumps(found))
    parts, findings, runs = counts.joined(
        [(tmp_path / "first" / "counts.json", ["nifti"]), (tmp_path / "second" / "counts.json", [])]
    )
    assert (parts["nifti"].inputs, parts["nifti"].exits, parts["mask"].inputs) == (6, {0: 2, 3: 4}, 7)
    assert findings == {"nifti: crash: x": 2}
    counts.write_figures(page, counts.figures(parts, runs))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| crashes | 2 |" in text
    assert "| others | 4 |" in text
    assert "1234567  python tools/fuzz.py  # nifti" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place for figures"):
        counts.write_figures(page, "x")
