"""Model files of strangers: nothing in them runs but the network, and damage is a refusal, never a crash."""

from __future__ import annotations

import io
import json
import pathlib
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import mafl, scan_array
from problems import SmallUNet
from torch import Tensor, nn

from mafl_cli.errors import ModelError
from mafl_cli.network.archives import Damaged, check_storages
from mafl_cli.network.exported import is_arithmetic
from mafl_cli.network.load import load

CPU = torch.device("cpu")


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.mark,)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return torch.export.export(SmallUNet(norm="instance"), (torch.zeros(1, 1, 16, 16),))


@pytest.fixture(scope="module")
def new_format(program: torch.export.ExportedProgram) -> dict[str, bytes]:
    """Records of a .pt2."""
    file = io.BytesIO()
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if "models/model.json" not in found:
        pytest.skip("this PyTorch writes the older format alone")
    return found


@pytest.fixture(scope="module")
def old_format(program: torch.export.ExportedProgram) -> dict[str, bytes]:
    """Records of a .pt2 as PyTorch up to 2.7 wrote them."""
    from torch._export.serde import schema, serialize

    parts = serialize.serialize(program)
    return {
        "version": ".".join(map(str, schema.SCHEMA_VERSION)).encode(),
        "serialized_exported_program.json": parts.exported_program,
        "serialized_state_dict.pt": parts.state_dict,
        "serialized_constants.pt": parts.constants,
        "serialized_example_inputs.pt": parts.example_inputs,
    }


def written(path: Path, records: dict[str, bytes], root: str = "net/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(root + name, data)
    return path


def opened(path: Path) -> Tensor:
    """The answer of a model to a fixed image."""
    segmenter, _, _ = load(path, device=CPU, size=lambda dims: (16,) * dims)
    return segmenter(torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0))).logits


def test_both_formats_of_torch_export_are_read(
    new_format: dict[str, bytes], old_format: dict[str, bytes], tmp_path: Path
) -> None:
    new = opened(written(tmp_path / "new.pt2", new_format))
    old = opened(written(tmp_path / "old.pt2", old_format, ""))
    net = SmallUNet(norm="instance")
    expected = net(torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0))).detach()
    torch.testing.assert_close(new, expected)
    torch.testing.assert_close(old, expected)


def test_pickled_sample_inputs_never_run(new_format: dict[str, bytes], tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    mark = tmp_path / "ran"
    trap = saved(((torch.zeros(1, 1, 16, 16), Trap(mark)), {}))
    model = written(tmp_path / "net.pt2", {**new_format, "data/sample_inputs/model.pt": trap})
    nib.save(nib.Nifti1Image(scan_array((16, 16, 2)), np.eye(4)), tmp_path / "scan.nii.gz")
    attack = ("attack", tmp_path / "scan.nii.gz", "--target", "erase:1", "-m", model, "-o", tmp_path / "out")
    for command in (("inspect", model), attack):
        result = mafl(*command)
        assert result.exit_code == 4
        assert "net.pt2: its sample inputs are pickled Python objects, which are not run; export" in result.stderr
        assert "Traceback" not in result.output
        assert str(tmp_path) not in result.output
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["state_dict", "constants", "example_inputs"])
def test_pickles_of_the_older_format_never_run(old_format: dict[str, bytes], part: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    records = {**old_format, f"serialized_{part}.pt": saved({"x": torch.zeros(1), "trap": Trap(mark)})}
    with pytest.raises(ModelError, match=r"^net\.pt2: its .* are pickled Python objects, which are not run"):
        opened(written(tmp_path / "net.pt2", records, ""))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("kind", "name"), [("weights", "weight_0"), ("constants", "opaque_obj_0"), ("constants", "custom_obj_0")]
)
def test_objects_among_the_tensors_never_run(
    new_format: dict[str, bytes], kind: str, name: str, tmp_path: Path
) -> None:
    mark, table = tmp_path / "ran", f"data/{kind}/model_{kind}_config.json"
    fact = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = {"config": {**json.loads(new_format[table])["config"], "extra": fact}}
    records = {**new_format, table: json.dumps(config).encode(), f"data/{kind}/{name}": saved(Trap(mark))}
    with pytest.raises(ModelError, match=rf"^net\.pt2: its {kind} are pickled Python objects, which are not run"):
        opened(written(tmp_path / "net.pt2", records))
    assert not mark.exists()


def changed(records: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """Records with another program."""
    document = json.loads(records["models/model.json"])
    change(document)
    return {**records, "models/model.json": json.dumps(document).encode()}


def renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {new if key == old else key: renamed(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, old, new) for inner in value]
    return new if value == old else value


TOUCH = "__import__('pathlib').Path({mark!r}).touch()"


@pytest.mark.parametrize("place", ["guard", "size", "name", "operator", "os", "structure", "range"])
def test_text_of_a_program_is_never_evaluated(new_format: dict[str, bytes], place: str, tmp_path: Path) -> None:
    code = TOUCH.format(mark=str(tmp_path / "ran"))

    def change(document: dict[str, Any]) -> None:
        module = document["graph_module"]
        graph = module["graph"]
        if place == "guard":
            document["guards_code"] = [f"{code} is None"]
        elif place == "size":
            next(iter(graph["tensor_values"].values()))["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
        elif place == "range":
            document["range_constraints"] = {code: {"min_val": 1, "max_val": 2}}
        elif place == "name":
            (name,) = (
                spec["user_input"]["arg"]["as_tensor"]["name"]
                for spec in module["signature"]["input_specs"]
                if "user_input" in spec
            )
            document["graph_module"] = renamed(module, name, f"x={code}")
        elif place == "operator":
            graph["nodes"][0]["target"] = "torch.hub.load"
        elif place == "os":
            graph["nodes"][0]["target"] = "torch.ops.aten.from_file.default"
        else:
            signature = module["module_call_graph"][0]["signature"]
            signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "__enum__")

    with pytest.raises(ModelError, match=r"^net\.pt2: .*(not part of a network|not one of PyTorch's for networks)"):
        opened(written(tmp_path / "net.pt2", changed(new_format, change)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "whether"),
    [
        ("Mul(Integer(4), Symbol('s0', positive=True, integer=True))", True),
        ("(1 + (((-1) + L['x'].size()[3]) // 2)) != 1", True),
        ("4*s39", True),
        ("Max(1, s0)", True),
        ("__import__('os').system('ls')", False),
        ("().__class__", False),
        ("s0.__class__", False),
        ("open('x')", False),
        ("[s for s in (1,)]", False),
        ("lambda: 1", False),
        ("Pow(Integer(9), Integer(999999))", False),
        ("9**9**9**9", False),
        ("1\n+ 2", False),
        ("(" * 5000, False),
        ("", False),
        ("9" * 5000, False),
    ],
)
def test_sizes_are_arithmetic(text: str, whether: bool) -> None:
    assert is_arithmetic(text) == whether


def test_a_compiled_library_is_not_loaded(tmp_path: Path) -> None:
    records = {"archive_format": b"pt2", "data/aotinductor/model/model.so": b"\x7fELF"}
    with pytest.raises(ModelError, match=r"^net\.pt2: is compiled \(AOTInductor\), which has no gradient"):
        opened(written(tmp_path / "net.pt2", records))


# --- damage -------------------------------------------------------------------------------------------------------


def test_a_weight_that_the_program_does_not_know_is_damage(tmp_path: Path, new_format: dict[str, bytes]) -> None:
    name = "data/weights/model_weights_config.json"
    renamed = new_format[name].replace(b'.weight"', b'.wEight"', 1)
    assert renamed != new_format[name]
    with pytest.raises(ModelError, match=r"^net\.pt2: PyTorch cannot load it: "):
        opened(written(tmp_path / "net.pt2", {**new_format, name: renamed}))


def cut(records: dict[str, bytes], part: str, length: int) -> dict[str, bytes]:
    (name,) = (name for name in records if name.endswith(part))
    return {**records, name: records[name][:length]}


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Records of a TorchScript file."""
    path = tmp_path_factory.mktemp("torchscript") / "net.ts"
    torch.jit.script(SmallUNet()).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("length", [0, 8])
def test_a_weight_that_was_cut_short_is_damage(torchscript: dict[str, bytes], length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "net.ts", cut(torchscript, "data/7", length))
    expected = rf"^net\.ts: is damaged or cut off: the record of one of its weights holds {length} bytes of 1152; copy"
    with pytest.raises(ModelError, match=expected):
        opened(path)


@pytest.mark.parametrize("length", [0, 8])
def test_a_weight_of_an_export_that_was_cut_short_is_damage(
    new_format: dict[str, bytes], length: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "net.pt2", cut(new_format, "weights/weight_0", length))
    with pytest.raises(ModelError, match=rf"^net\.pt2: is damaged .* holds {length} bytes of 144"):
        opened(path)


def test_a_changed_weight_is_damage(tmp_path: Path) -> None:
    """PyTorch looks at no checksum: the network would be another one, without a word."""
    path = tmp_path / "net.ts"
    torch.jit.script(SmallUNet()).save(path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("net/data/7")
        weights = archive.read(entry)
    data = bytearray(path.read_bytes())
    data[data.index(weights) + 5] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(
        ModelError, match=r"^net\.ts: is damaged or cut off: its record data/7 is not as it was written"
    ):
        opened(path)


def test_a_tensor_beyond_its_record_is_damage() -> None:
    import pickle

    class Rebuilt:
        def __init__(self, *size: int) -> None:
            self.size = size

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Stored(), 0, self.size, (1,), False, {})

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Stored) else None

    def pickled(size: int) -> bytes:
        file = io.BytesIO()
        Pickler(file, protocol=2).dump(Rebuilt(size))
        return file.getvalue()

    check_storages(pickled(4), {"0": 16}, "data.pkl")
    with pytest.raises(Damaged, match="reaches beyond its record"):
        check_storages(pickled(5), {"0": 16}, "data.pkl")
    with pytest.raises(Damaged, match="holds 8 bytes of 16"):
        check_storages(pickled(4), {"0": 8}, "data.pkl")


def test_a_bomb_is_not_unpacked(torchscript: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.ts"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in torchscript.items():
            archive.writestr(f"net/{name}", data)
        archive.writestr("net/data/99", bytes(2**26))
    with pytest.raises(ModelError, match=r"^net\.ts: would unpack to 0\.1 GiB, more than 20 times its size"):
        opened(path)


class Saving(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.path)
        return self.conv(x)


def test_a_program_that_writes_files_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Saving(str(tmp_path / "ran"))).save(tmp_path / "net.ts")
    with pytest.raises(ModelError, match=r"^net\.ts: its program calls 'save', which reaches beyond the network"):
        opened(tmp_path / "net.ts")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["ts", "pt2"])
def test_damage_anywhere_is_a_refusal_without_a_traceback(
    kind: str,
    torchscript: dict[str, bytes],
    new_format: dict[str, bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Bytes changed, cut off or zeroed anywhere, and records changed whose checksums are right again."""
    records, rng = (torchscript if kind == "ts" else new_format), random.Random(1)
    path = written(tmp_path / f"net.{kind}", records)
    whole, refusals = path.read_bytes(), list[str]()
    for turn in range(16):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        if turn % 4 == 0:
            del data[at:]
        elif turn % 4 == 1:
            data[at : at + 200] = bytes(len(data[at : at + 200]))
        else:
            name = rng.choice([name for name in records if name.endswith((".json", ".pkl", ".py", ".pt"))])
            part = bytearray(records[name])
            for place in rng.choices(range(len(part)), k=1 + 3 * (turn % 2)):
                part[place] = rng.randrange(256)
            data = bytearray(written(path, {**records, name: bytes(part)}).read_bytes())
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(path, device=CPU, size=lambda dims: (16,) * dims)
            except ModelError as exc:
                refusals.append(str(exc))
    assert len(refusals) >= 6
    for refusal in refusals:
        assert refusal.startswith(f"net.{kind}: ")
        assert "\n" not in refusal
        assert str(tmp_path) not in refusal
        assert "site-packages" not in refusal
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
