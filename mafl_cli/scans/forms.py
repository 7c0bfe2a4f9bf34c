"""Where a NIfTI header says its voxels are. It says so up to three times, and programs differ in whom they believe.

Words. *form*: one of these answers: the sform (an affine), the qform (a quaternion and voxel sizes), or, where the
codes of both are 0, the voxel sizes alone. mafl uses the sform if its code is not 0, else the qform, else the sizes.

A mask made by a program that believes another form lies elsewhere by its own header, though its voxels are those of
the scan. To resample it would move what is right; so such pairs are told apart from those of two grids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from mafl_cli.errors import GeometryError, InputError
from mafl_cli.scans import geometry
from mafl_cli.scans.geometry import Affine

_MM_PER_UNIT = {1: 1000.0, 3: 0.001}
# Square of a quaternion's length: what few digits make of 1, and what is worth a word.
_LONGEST, _ROUNDED = 1.02, 1.00001
_SIZES = "voxel sizes alone"


@dataclass(frozen=True, eq=False)
class Form:
    """An answer of a header. coded: whether its code says that it counts."""

    name: str
    affine: Affine
    coded: bool


@dataclass(frozen=True, eq=False)
class Forms:
    """All usable answers of a header in mm; the first is used."""

    used: Form
    others: tuple[Form, ...]


class Placed(Protocol):
    """A scan or a mask. forms: None unless it is NIfTI."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def affine(self) -> Affine: ...
    @property
    def forms(self) -> Forms | None: ...


# --- reading ------------------------------------------------------------------------------------------------------


def read(name: str, header: Nifti1Header, shape: Sequence[int]) -> tuple[Forms, tuple[str, ...]]:
    """Where the voxels of a file are, and what is odd about it. shape: (I, J, K).

    Raises: InputError without a usable affine.
    """
    coded = [form for form in ("sform", "qform") if int(header[f"{form}_code"]) != 0]
    used = coded[0] if coded else _SIZES
    notes = []
    try:
        affine = _affine(header, used, shape)
    except Exception as exc:  # A corrupt quaternion makes nibabel raise several classes.
        raise InputError(f"{name}: the affine is unusable ({type(exc).__name__}); repair the header.") from exc
    if not _invertible(affine):
        raise InputError(
            f"{name}: the affine is singular or not finite (a spacing of 0, or two axes that coincide); "
            "repair the sform or qform in its header."
        )
    if not coded:
        notes.append(
            f"{name}: the header has no orientation (sform and qform codes are 0): "
            "left and right are a guess, and slice planes too."
        )
    if "qform" in coded and _ROUNDED < _squared(header) <= _LONGEST:
        length = math.sqrt(_squared(header))
        notes.append(f"{name}: the quaternion of its qform is {length:.6g} long instead of 1; it is scaled to 1.")
    others = []
    for form in ("sform", "qform", _SIZES):
        if form == used:
            continue
        try:
            other = _affine(header, form, shape)
        except Exception:  # As above; it is not used.
            other = np.zeros((4, 4))
        if _invertible(other):
            name_of = form if form in coded or form == _SIZES else f"{form} (of code 0)"
            others.append(Form(name_of, other, form in coded))
        elif form in coded:
            notes.append(f"{name}: the qform is corrupt; the sform is used.")
    for other in (each.affine for each in others if each.coded):
        if not geometry.same_space(shape, affine, shape, other):
            apart = geometry.corner_shift(shape, affine, other)
            notes.append(
                f"{name}: sform and qform disagree by up to {apart:.3g} mm; "
                "the sform is used here, other programs may use the qform."
            )
    return Forms(Form(used, affine, bool(coded)), tuple(others)), tuple(notes)


def _affine(header: Nifti1Header, form: str, shape: Sequence[int]) -> Affine:
    """One form in mm, with a third axis where a 2-D file has none."""
    with np.errstate(all="ignore"):
        if form == "sform":
            found = header.get_sform()
        elif form == "qform":
            found = _qform(header)
        else:
            found = header.get_base_affine()
    affine = np.array(found, dtype=np.float64)
    if shape[2] == 1 and not affine[:3, 2].any():
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = normal / max(float(np.linalg.norm(normal)), np.finfo(float).tiny)
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    return affine


def _qform(header: Nifti1Header) -> Affine:
    """As nibabel, but a quaternion that few digits have made longer than 1 is scaled to 1, as by other readers."""
    squared = _squared(header)
    if not 1 < squared <= _LONGEST:
        return np.asarray(header.get_qform(), dtype=np.float64)
    straight = header.copy()
    for part in "bcd":
        straight[f"quatern_{part}"] = 0
    affine = np.array(straight.get_qform(), dtype=np.float64)
    turn = quat2mat([0.0, *(float(header[f"quatern_{part}"]) / math.sqrt(squared) for part in "bcd")])
    affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def _squared(header: Nifti1Header) -> float:
    return sum(float(header[f"quatern_{part}"]) ** 2 for part in "bcd")


def _invertible(affine: NDArray[np.float64]) -> bool:
    """Whether it is a scan's affine: finite, within 1000 km, its three axes span a volume."""
    if not (np.abs(affine) < 1e9).all():
        return False
    with np.errstate(all="ignore"):
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        # Perpendicular axes of length 1 span a volume of 1; 1e-3 is a shear that no scanner makes.
        return bool(abs(np.linalg.det(axes)) > 1e-3)


# --- comparing ----------------------------------------------------------------------------------------------------


def require_same_grid(a: Placed, b: Placed, advice: str | None = None) -> None:
    """Raise GeometryError unless both lie on one grid; says so if only their headers' forms differ.

    advice: what to do about two grids, as a sentence; see `scans.geometry.require_same_space`.
    """
    if not geometry.same_space(a.shape, a.affine, b.shape, b.affine):
        require_same_forms(a, b)
        geometry.require_same_space(a.name, a.shape, a.affine, b.name, b.shape, b.affine, advice)


def require_same_forms(a: Placed, b: Placed, *, coded: bool = False) -> None:
    """Raise GeometryError if b has the voxels of a, but they are placed by other forms.

    coded: look only at forms that count; the others may agree by chance with a grid in another order.
    """
    said = None
    if tuple(a.shape) == tuple(b.shape):
        said = _differing_forms(a, b, coded) or (None if coded else _without_orientation(a, b))
    if said is not None:
        raise GeometryError(f"{said}. The voxels are the same then, and must not be resampled.")


def _differing_forms(a: Placed, b: Placed, coded: bool) -> str | None:
    for one, other in product(_answers(a), _answers(b)):
        used = one.affine is a.affine, other.affine is b.affine
        # What does not count tells where the maker of b saw a, but nothing else: it is often the same default.
        if all(used) or ((coded or not used[1]) and not (one.coded and other.coded)):
            continue
        if one.name == other.name == _SIZES:  # These are always alike for equal voxels.
            continue
        if geometry.same_space(a.shape, one.affine, b.shape, other.affine):
            return _told(a, one, b, other, used)
    return None


def _told(a: Placed, one: Form, b: Placed, other: Form, used: tuple[bool, bool]) -> str:
    apart = f"up to {geometry.corner_shift(a.shape, a.affine, b.affine):.3g} mm away"
    geometry_of_a = f"give {b.name} the geometry of {a.name} (as FSL's fslcpgeom does)"
    if used[1]:
        return (
            f"{b.name} lies where the {one.name} of {a.name} would place it, {apart} from its {_used(a)}, which mafl "
            f"uses: if it was made on {a.name}, {geometry_of_a}, or correct the {_used(a)} if that is the wrong one"
        )
    if used[0]:
        return (
            f"{b.name} lies on {a.name} by its {other.name}, but {apart} by its {_used(b)}, which mafl uses: if it was "
            f"made on {a.name}, make both forms of its header agree (as FSL's fslorient does), or {geometry_of_a}"
        )
    return (
        f"{b.name} and {a.name} agree in the {other.name}, but lie {apart} from each other by the {_used(b)}, which "
        f"mafl uses: if one was made on the other, {geometry_of_a}"
    )


def _without_orientation(a: Placed, b: Placed) -> str | None:
    """What is said of two files of equal voxels one of which does not say where it lies."""
    sizes = [np.array(geometry.spacing(each.affine)) for each in (a, b)]
    lost = [each.name for each in (b, a) if each.forms is not None and each.forms.used.name == _SIZES]
    if not lost or np.abs(sizes[0] / sizes[1] - 1).max() > 0.05:
        return None
    return (
        f"{lost[0]} has no orientation in its header (sform and qform codes are 0), so that it only seems to lie "
        f"elsewhere than {a.name if lost[0] == b.name else b.name}: if {b.name} was made on {a.name}, give both the "
        "same geometry (as FSL's fslcpgeom does)"
    )


def _used(placed: Placed) -> str:
    return "geometry" if placed.forms is None else placed.forms.used.name


def _answers(placed: Placed) -> Iterator[Form]:
    """The forms of a file, the used one first; the affine itself is that of the used one."""
    forms = placed.forms
    yield Form("geometry" if forms is None else forms.used.name, placed.affine, forms is None or forms.used.coded)
    if forms is not None:
        yield from forms.others
        # What programs that know no forms write: no turn, the first voxel in the origin; ITK points to L and P.
        for signs in ((1, 1, 1), (-1, -1, 1)):
            yield Form(_SIZES, np.diag([*np.multiply(signs, geometry.spacing(placed.affine)), 1.0]), False)
