"""The right side of the patient must be where radiologists look for it, however the scan is stored."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from bodies import ORIENTATIONS, case, ras, stored_as, stored_slice
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from nibabel.affines import apply_affine
from nibabel.quaternions import angle_axis2mat
from pages import page_case

from mafl_cli.config import DETECTORS
from mafl_cli.errors import OutputError, UsageError
from mafl_cli.results.detection_report import Evasion, Scores
from mafl_cli.results.report import CaseRecord, Trace
from mafl_cli.show import choice, show
from mafl_cli.show import figure as figures
from mafl_cli.show.display import class_colour
from mafl_cli.show.figure import panel
from mafl_cli.show.slices import oriented_slice

PLANES = ("sagittal", "coronal", "axial")
SHARED = Path(__file__).parents[3] / "shared" / "data" / "cases"


def test_the_title_of_a_run_has_what_detectors_say() -> None:
    told = page_case("a").case
    assert isinstance(told, CaseRecord)
    rising = Scores(slice=1, clean=0.25, adversarial=0.5)
    found = tuple(
        Evasion(detector=name, asked=True, above=above, samples=(rising,))
        for name, above in zip(DETECTORS, (0, 1, 1), strict=True)
    )
    plain, evading = show._title(told), show._title(replace(told, metrics=replace(told.metrics, evasion=found)))
    assert (
        evading
        == f"{plain} · detectors that say more than of the clean scan: blur 0 of 1, entropy 1 of 1, margin 1 of 1"
    )


# --- one slice ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3), ids=PLANES)
def test_slices_lie_as_simpleitk_says(axis: Any) -> None:
    """An array of an image turned to LPS runs (to the head, to the back, to the left): the convention itself."""
    rng = np.random.default_rng(0)
    volume, affine = rng.random((5, 6, 7)), ras()
    for orientation in ORIENTATIONS:
        array, turned = stored_as(orientation, volume, affine)
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        lps = np.diag([-1, -1, 1, 1]) @ turned
        sizes = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(sizes.tolist())
        image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        whole = SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(image, "LPS"))
        # The left-most, rear-most or lowest slice but one.
        expected = (whole[::-1, :, -2], whole[::-1, -2, :], whole[1])[axis]
        stored_axis, index = stored_slice(orientation, volume.shape, axis, 1)
        np.testing.assert_array_equal(oriented_slice(array, turned, stored_axis, index)[0], expected)


@pytest.mark.parametrize("angle", [0.0, 0.3], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    ("axis", "letters"), [(0, "APSI"), (1, "RLSI"), (2, "RLAP")], ids=["sagittal", "coronal", "axial"]
)
def test_letters_stand_where_the_millimetres_say(axis: Any, letters: Any, angle: Any) -> None:
    affine = ras(rotation=angle_axis2mat(angle, (1, 2, 3)))
    shape = (5, 6, 7)
    for orientation in ORIENTATIONS:
        indices, turned = stored_as(orientation, np.arange(np.prod(shape)).reshape(shape), affine)
        stored_axis, index = stored_slice(orientation, shape, axis, 2)
        picture, found, _ = oriented_slice(indices, turned, stored_axis, index)
        assert "".join(found) == letters
        places = apply_affine(affine, np.stack(np.unravel_index(picture, shape), axis=-1))
        sides = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
        middle = places.mean(axis=(0, 1))
        borders = (places[:, 0], places[:, -1], places[0], places[-1])
        for letter, border in zip(found, borders, strict=True):
            body_axis, sign = sides[letter]
            assert sign * (border.mean(axis=0) - middle)[body_axis] > 0


@pytest.mark.parametrize(
    ("axis", "aspect"),
    [(0, 3.0 / 1.1), (1, 3.0 / 0.8), (2, 1.1 / 0.8)],
    ids=["sagittal", "coronal", "axial"],
)
def test_aspect_is_row_over_column_spacing_in_every_orientation(axis: Any, aspect: Any) -> None:
    volume = np.zeros((4, 5, 6))
    for orientation in ORIENTATIONS:
        array, turned = stored_as(orientation, volume, ras())
        stored_axis, index = stored_slice(orientation, volume.shape, axis, 0)
        picture, _, found = oriented_slice(array, turned, stored_axis, index)
        assert found == pytest.approx(aspect)
        assert picture.shape == ((6, 5), (6, 4), (5, 4))[axis]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="development scans are not here")
def test_a_real_scan_stored_as_lia_is_the_same_picture_after_nibabel_turned_it() -> None:
    image = nib.load(SHARED / "t1_gwm_headbox" / "image.nii.gz")
    canonical = nib.as_closest_canonical(image)
    assert nib.aff2axcodes(image.affine) == ("L", "I", "A")
    pictures = [
        oriented_slice(np.asarray(scan.dataobj), scan.affine, axis, index)
        for scan, axis, index in ((image, 1, 60), (canonical, 2, image.shape[1] - 1 - 60))
    ]
    np.testing.assert_array_equal(pictures[0][0], pictures[1][0])
    assert pictures[0][1:] == pictures[1][1:]


# --- which slices -------------------------------------------------------------------------------------------

NOTHING = np.zeros(9)


@pytest.mark.parametrize(
    ("change", "rows", "chosen"),
    [
        pytest.param([0, 0, 5, 0, 0], 3, [2], id="only one changed"),
        pytest.param([0, 1, 5, 4, 0], 3, [1, 2, 3], id="as many as asked for"),
        pytest.param([5, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2], 3, [0, 2, 4], id="not all neighbours"),
        pytest.param([5, 4.9, 4.8, 4.7, 4.6, 4.5, 4.4, 4.3, 4.2], 1, [0], id="the most changed one first"),
        pytest.param([9, 8, 0.01, 0.01, 0.01, 0.01], 2, [0, 1], id="neighbours rather than next to nothing"),
        pytest.param([9, 0.01, 0, 0, 0, 0], 2, [0, 1], id="next to nothing rather than fewer"),
    ],
)
def test_slices_shown(change: Any, rows: Any, chosen: Any) -> None:
    assert sorted(choice.choose(np.array(change, float), [], rows)) == chosen


def test_the_most_changed_slice_is_always_shown() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        change = rng.random(20) ** 4
        assert change.argmax() in choice.choose(change, [], 3)


@pytest.mark.parametrize(
    ("otherwise", "chosen"), [([NOTHING, np.eye(9)[7]], [7]), ([NOTHING], [4])], ids=["masks", "nothing at all"]
)
def test_identical_scans_still_have_a_picture(otherwise: Any, chosen: Any) -> None:
    assert choice.choose(NOTHING, otherwise, 3) == chosen


# --- the whole picture --------------------------------------------------------------------------------------


STEPS = tuple(range(150))
TRACE = Trace(
    step=STEPS,
    loss=tuple(1 / (step + 1) for step in STEPS),
    score=tuple(1 - 1 / (step + 1) for step in STEPS),
    reached=tuple(float(step > 40) for step in STEPS),
    l2_model=tuple(123.4 * step for step in STEPS),
)


def draw(path: Any, volumes: Any = None, affine: Any = None, **changes: Any) -> Any:
    settings = {
        "affine": ras() if affine is None else affine,
        "slice_axis": 2,
        "unit": "HU",
        "class_names": [f"class {n}" for n in range(20)],
        "title": "a case",
        "path": path,
        "rows": 1,
        **changes,
    }
    return panel(**(case() if volumes is None else volumes), **settings)


def pixels_of(ax: Any) -> tuple[slice, slice]:
    """Rows and columns of a rendered figure that a picture has, without its frame."""
    bottom = ax.get_figure().bbox.height
    down = slice(round(bottom - ax.bbox.y1) + 3, round(bottom - ax.bbox.y0) - 3)
    return down, slice(round(ax.bbox.x0) + 3, round(ax.bbox.x1) - 3)


def test_a_mark_at_the_patients_right_front_is_drawn_at_the_upper_left(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = layout(None, monkeypatch, window=(100, 200))
    picture = np.asarray(figure.canvas.buffer_rgba())[pixels_of(figure.axes[0])][..., :3].min(axis=2) / 255
    # Without the letters, which are white as well.
    rows, columns = np.nonzero(picture[40:-40, 40:-40] == 1)
    assert len(rows) > 100
    assert rows.max() + 40 < picture.shape[0] / 2
    assert columns.max() + 40 < picture.shape[1] / 2


@pytest.mark.parametrize(
    "number", [5, 17, 31, 46], ids=lambda n: "".join(nib.orientations.ornt2axcodes(ORIENTATIONS[n]))
)
def test_the_picture_does_not_depend_on_how_the_scan_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: Any
) -> None:
    volumes, affine = case(), ras()
    orientation = ORIENTATIONS[number]
    turned = {name: stored_as(orientation, volume, affine)[0] for name, volume in volumes.items()}
    first = draw(tmp_path / "a.png", volumes, affine, rows=2)
    second = draw(
        tmp_path / "b.png",
        turned,
        stored_as(orientation, volumes["clean"], affine)[1],
        slice_axis=int(orientation[2, 0]),
        rows=2,
    )
    shape = volumes["clean"].shape
    assert [stored_slice(orientation, shape, 2, index)[1] for index in first] == second
    # Left of the pictures stand the array's own indices, which do depend on it.
    left = pixels_of(layout(volumes, monkeypatch, rows=2).axes[0])[1].start - 3
    a, b = (imread(tmp_path / name)[:, left:] for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(a, b)


def test_both_scans_have_the_same_window(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [
        ax.images[0] for ax in layout(None, monkeypatch, rows=2).axes if ax.images and ax.images[0].cmap.name == "gray"
    ]
    assert len(scans) == 4 * 2
    assert len({scan.get_clim() for scan in scans}) == 1


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, suffix: Any) -> None:
    for name in "ab":
        draw(tmp_path / (name + suffix))
    first, second = ((tmp_path / (name + suffix)).read_bytes() for name in "ab")
    assert first == second
    assert len(first) > 10_000


def test_rows_run_from_head_to_foot(tmp_path: Path) -> None:
    upright = draw(tmp_path / "a.png", rows=3)
    assert upright == sorted(upright, reverse=True)
    assert len(upright) == 3


@pytest.mark.parametrize("slice_axis", range(3), ids=PLANES)
def test_every_slice_axis(tmp_path: Path, slice_axis: Any) -> None:
    shown = draw(tmp_path / "a.png", slice_axis=slice_axis, rows=2)
    assert len(shown) == 2
    assert all(0 <= index < case()["clean"].shape[slice_axis] for index in shown)


def zeros(shape: Any = (12, 12, 3), dtype: Any = np.int64) -> Any:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"clean": zeros(dtype=np.float32), "adversarial": zeros(dtype=np.float32)}, id="constant"),
        pytest.param({"prediction_clean": zeros()}, id="no clean prediction"),
        pytest.param({"target": zeros(), "prediction_clean": zeros(), "prediction_adversarial": zeros()}, id="empty"),
        pytest.param({"target": zeros() + 1}, id="target everywhere"),
    ],
)
def test_odd_cases_are_drawn(tmp_path: Path, changes: Any) -> None:
    volumes = {**case((12, 12, 3)), **changes}
    assert draw(tmp_path / "a.png", volumes)
    assert imread(tmp_path / "a.png").std() > 0.01


def test_a_single_voxel_and_integers_are_drawn(tmp_path: Path) -> None:
    volumes = {name: np.ones((1, 1, 1), np.uint8) for name in case()}
    assert draw(tmp_path / "a.png", {**volumes, "adversarial": volumes["clean"] - 1}) == [0]


@pytest.mark.parametrize(
    "name", ["_private", "cost $5 or $6", r"$\frac{1}{", "脾臓", "a very long name of a very small structure"]
)
def test_any_class_name_and_title(tmp_path: Path, name: Any) -> None:
    draw(tmp_path / "a.svg", class_names=["background", name], title=f"about {name}")
    assert (tmp_path / "a.svg").stat().st_size > 10_000


def test_another_suffix_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^panel\.gif: .*\.png, \.pdf, \.svg"):
        draw(tmp_path / "panel.gif")


def test_a_missing_folder_is_one_sentence_without_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^panel\.png: cannot be written") as caught:
        draw(tmp_path / "secret" / "panel.png")
    assert "secret" not in str(caught.value)


def test_matplotlibs_global_state_is_left_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    draw(tmp_path / "a.png")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_imported_and_importing_the_module_is_light(tmp_path: Path) -> None:
    code = "import sys, mafl_cli.show.figure; assert 'matplotlib' not in sys.modules"
    drawing = (
        "import numpy as np; from pathlib import Path; z = np.ones((12, 12, 1));"
        "mafl_cli.show.figure.panel(clean=z, adversarial=z + 1, prediction_clean=z, prediction_adversarial=z, target=z,"
        "affine=np.eye(4), slice_axis=2, unit='HU', class_names=['a', 'b'], title='t', path=Path('a.png'))"
    )
    check = "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    root = str(Path(figures.__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", "; ".join((code, drawing, check))],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
    )


# --- layout -------------------------------------------------------------------------------------------------


def layout(volumes: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """The figure that would be written, rendered."""
    caught: list[Figure] = []
    with monkeypatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: caught.append(figure))
        draw(Path(folder) / "a.png", volumes, **changes)
    FigureCanvasAgg(caught[0]).draw()
    return caught[0]


@pytest.mark.parametrize(
    ("shape", "classes", "title", "unit"),
    [
        pytest.param((40, 48, 9), 2, "a case", "HU", id="usual"),
        pytest.param((40, 48, 9), 9, "a case", "native units", id="many classes"),
        pytest.param((90, 12, 9), 3, "a case", "native units", id="flat"),
        pytest.param((12, 90, 9), 3, "a case", "native units", id="tall"),
        pytest.param((40, 48, 1), 3, "so many words about this case " * 9, "native units", id="long title"),
    ],
)
def test_no_words_overlap_or_leave_the_picture(
    monkeypatch: pytest.MonkeyPatch, shape: Any, classes: Any, title: Any, unit: Any
) -> None:
    names = ["background", *(f"structure number {n}, left half" for n in range(1, classes))]
    volumes = case(shape, classes=classes)
    volumes["clean"] *= 40
    figure = layout(volumes, monkeypatch, title=title, unit=unit, class_names=names, rows=2, trace=TRACE)
    words = [*figure.texts, *figure.legends[0].get_texts()]
    for ax in figure.axes:
        words += [text for text in (*ax.texts, ax.xaxis.label, ax.yaxis.label) if text.get_text()]
        words += ax.get_legend().get_texts() if ax.get_legend() else []
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            # Matplotlib also has labels that it does not draw, of ticks outside the limits.
            shown = [tick for tick in axis.get_major_ticks() if limits[0] <= tick.get_loc() <= limits[1]]
            words += [
                label for tick in shown for label in (tick.label1, tick.label2)
                if label.get_visible() and label.get_text()
            ]  # fmt: skip
    boxes = [(text.get_text(), text.get_window_extent()) for text in words]
    for name, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, name
    for (name, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), (name, other)
    for ax in figure.axes:
        assert not any(ax.bbox.overlaps(text.get_window_extent()) for text in figure.texts)


def test_the_window_the_range_and_the_unit_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = layout(None, monkeypatch, window=(-160, 240))
    words = [text.get_text() for text in figure.texts]
    assert "window −160 to 240 HU" in words
    assert "HU" in words
    assert any(word.startswith("colours to ±") and "largest" in word for word in words)
    assert any("patient's right is on the left" in word for word in words)


def test_no_two_classes_share_a_colour_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = layout(case(classes=12), monkeypatch)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    patches = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert len(labels) == 3 + 6 + 1
    assert len(set(patches)) == 7
    assert any("more not drawn" in label for label in labels)


def test_a_class_of_the_palette_has_its_own_colour_whatever_else_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = case(classes=12)
    for name in ("prediction_clean", "prediction_adversarial", "target"):
        volumes[name][volumes[name] == 1] = 0
    colours, _ = figures._colours([choice.Slice.cut(tuple(volumes.values()), ras(), 2, index) for index in range(9)])
    assert len(set(colours.values())) == len(colours) == 6
    assert all(colours[label] == class_colour(label) for label in colours if label <= 6)
    assert 1 not in colours


def test_a_run_is_drawn_with_its_course_or_without(monkeypatch: pytest.MonkeyPatch) -> None:
    told = layout(None, monkeypatch, trace=TRACE)
    assert any("L2" in ax.get_ylabel() for ax in told.axes)
    silent = layout(None, monkeypatch)
    assert any(text.get_text() == "no trace in this report" for ax in silent.axes for text in ax.texts)
    for title in ("change by voxel", "power spectrum in the slices", "course of the search"):
        assert title in [text.get_text() for text in silent.texts]


def test_the_changed_part_is_enlarged_and_marked_on_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = case((80, 80, 5))
    small = zeros((80, 80, 5))
    small[30:34, 30:34, 2] = 1
    volumes.update(prediction_clean=small * 0, prediction_adversarial=small, target=small)
    figure = layout(volumes, monkeypatch)
    scan, _, _, _, _, outlines = figure.axes[:6]
    (mark,) = [patch for patch in scan.patches if not patch.get_fill()]
    assert outlines.get_xlim() == pytest.approx((mark.get_x(), mark.get_x() + mark.get_width()), abs=1)
    assert mark.get_width() < 0.65 * np.ptp(scan.get_xlim())
    # Columns run from right to left: index 30 of 80 is column 49.
    assert mark.get_x() < 80 - 1 - 34 < 80 - 1 - 30 < mark.get_x() + mark.get_width()


def test_an_outline_is_closed_at_the_edge_of_the_picture() -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_axes((0, 0, 1, 1))
    mask = np.zeros((6, 6), bool)
    mask[0:3, 0:3] = True
    figures._outline(ax, mask, "red", 1, 1)
    (path,) = ax.collections[0].get_paths()
    vertices = np.asarray(path.vertices)
    np.testing.assert_array_equal(vertices[0], vertices[-1])
    # Just inside the border of the outermost voxels' centres and the air around them.
    np.testing.assert_allclose(vertices.min(axis=0), -0.2)
    np.testing.assert_allclose(vertices.max(axis=0), 2.2)


def test_a_ring_marks_the_largest_change_that_the_window_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = case()
    volumes["adversarial"] = volumes["clean"].copy()
    volumes["adversarial"][18:22, 30:34, 4] += 60
    # Larger, but white in this window before and after.
    volumes["adversarial"][26:29, 30:33, 4] += 500
    volumes["clean"][26:29, 30:33, 4] = 900
    figure = layout(volumes, monkeypatch, window=(-160, 240))
    spot = oriented_slice(np.pad(np.ones((2, 2, 1)), ((19, 19), (31, 15), (4, 4))), ras(), 2, 4)[0]
    rows, columns = (where.mean() for where in np.nonzero(spot))
    for ax in figure.axes[:4]:
        (ring,) = ax.lines
        assert (float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) == pytest.approx((columns, rows), abs=0.6)
    words = [text.get_text() for text in figure.texts]
    assert any(word.endswith(f"{round(60 / 400 * 255)} grey levels") for word in words), words
    assert not any(ax.lines for ax in layout(volumes, monkeypatch, window=(-2000, -1500)).axes[:4])
