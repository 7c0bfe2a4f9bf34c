"""Damaged model files, MONAI bundles, model cards, and networks that nobody would write twice."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from random import Random

import torch

from fuzzing import damage
from fuzzing.judge import Trial
from fuzzing.stock import CARD, INFERENCE, METADATA, Stock, Threshold

CANARY = "canary"
"""A file that appears in the working directory when a model's code was run that is no network."""


def model(rng: Random, place: Path, stock: Stock) -> Trial:
    """A .ts or .pt2 file with damaged records, damaged bytes, or something else inside."""
    good = rng.choice(("flat.ts", "flat.ts", "cube.ts", "traced.ts", "flat.pt2", "flat.pt2", "cube.pt2"))
    data = stock.data(good)
    how = rng.random()
    if how < 0.7:
        data, what = records(rng, data)
    elif how < 0.9:
        data, what = damage.blind(rng, data)
    else:
        data, what = _something_else(rng, data)
    name = f"model{rng.choice((Path(good).suffix,) * 5 + ('.pt', '.pt2', '.ts', '.pth', '.zip', '.onnx'))}"
    (place / name).write_bytes(data)
    return _used(rng, place, stock, name, f"{good}: {what}")


def _used(rng: Random, place: Path, stock: Stock, name: str, what: str) -> Trial:
    file = rng.choice((name, str(place / name)))
    if rng.random() < 0.75:
        as_json = rng.random() < 0.3
        return Trial(("inspect", file, *(("--json",) if as_json else ())), what, as_json=as_json)
    scan = str(stock.root / "int16.nii")
    end = ("--dry-run",) if rng.random() < 0.5 else ("--steps", "1")
    return Trial(("attack", scan, "-t", "erase:1", "-m", file, "-o", "out", *end), what, results=("out",))


class _Touch:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (CANARY, "w")


def records(rng: Random, data: bytes, only: str = "") -> tuple[bytes, str]:
    """The archive with one to three of its records spoilt. only: those whose name holds this."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice([each for each in files if only in each] or list(files))
        how = rng.choice(("bytes",) * 4 + ("empty", "gone", "renamed", "swapped", "pickle", "number", "text", "longer"))
        short = name.partition("/")[2]
        said.append(f"{short}: {how}")
        if how == "bytes":
            files[name], more = damage.blind(rng, files[name])
            said[-1] += f" ({more})"
        elif how == "empty":
            files[name] = b""
        elif how == "gone" and len(files) > 1:
            del files[name]
        elif how == "renamed":
            files[name + rng.choice(("x", "/", "\n", "é", "/../x"))] = files.pop(name)
        elif how == "swapped":
            other = rng.choice(list(files))
            files[name], files[other] = files[other], files[name]
        elif how == "pickle":
            saved = io.BytesIO()
            torch.save(_Touch(), saved)
            files[name] = rng.choice((saved.getvalue(), pickle.dumps(_Touch(), 2)))
        elif how == "number":
            files[name] = rng.choice((b"0", b"-1\n", b"99\n", b"9" * 400, b"1e9", b"\n"))
        elif how == "longer":
            files[name] += bytes(rng.choice((1, 4, 4096)))
        else:
            files[name] = _edited(rng, files[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))) as made:
        for name, each in files.items():
            made.writestr(name, each)
            if rng.random() < 0.01:
                made.writestr(name, each)
                said.append("a record twice")
    return stream.getvalue(), ", ".join(said)


_WORDS = (
    (b"torch.conv2d", b"ops.mylib.conv2d"),
    (b"torch.relu", b"torch.relu_"),
    (b"[1, 1]", b"[0, 0]"),
    (b"[1, 1]", b"[-1, 1]"),
    (b"[1, 1]", b"[1000000, 1]"),
    (b"Tensor", b"int"),
    (b"def forward", b"def backward"),
    (b"return ", b"return -"),
    (b"1", b"9"),
    (b"self", b"slef"),
    (b"conv2d", b"conv3d"),
    (b"torch.relu(", b"torch.reshape("),
    (b"\n", b"\n\n"),
    (b"    ", b"\t"),
    (b"x", b""),
    (b"aten.conv2d", b"aten.conv1d"),
    (b'"', b""),
    (b"default", b"out"),
    (b"relu", b"exp"),
    (b"float32", b"float16"),
    (b"16", b"17"),
    (b"as_int", b"as_none"),
    (b"{", b"[{"),
    (b"as_tensor", b"as_sym_int"),
    (b"1", b"-1"),
    (b"0", b"99999999999"),
)


def _edited(rng: Random, data: bytes) -> bytes:
    """A program with other words in it, or a JSON record with other values."""
    if data[:1] == b"{" and rng.random() < 0.6:
        try:
            return damage.as_json(rng, damage.tree(rng, json.loads(data))[0]).encode(errors="surrogatepass")
        except (ValueError, RecursionError):
            pass
    present = [pair for pair in _WORDS if pair[0] in data]
    if not present:
        return damage.blind(rng, data, 1)[0]
    old, new = rng.choice(present)
    return data.replace(old, new, rng.choice((1, -1)))


def _something_else(rng: Random, data: bytes) -> tuple[bytes, str]:
    stream = io.BytesIO()
    how = rng.choice(
        ("state dict", "pickled", "zip in a zip", "tensor", "ONNX", "pointer", "page", "cut archive", "safetensors")
    )
    if how == "state dict":
        torch.save({"a.weight": torch.zeros(2), "epoch": 3}, stream)
    elif how == "pickled":
        stream.write(pickle.dumps(_Touch(), 2))
    elif how == "zip in a zip":
        with zipfile.ZipFile(stream, "w") as made:
            made.writestr("model/flat.ts", data)
    elif how == "tensor":
        torch.jit.save(torch.jit.script(torch.nn.Identity()), stream)
    elif how == "ONNX":
        stream.write(b"\x08\x07\x12\x07pytorch\x1a\x051.0.0" + bytes(64))
    elif how == "pointer":
        stream.write(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    elif how == "page":
        stream.write(b"<!DOCTYPE html><html>Sign in</html>")
    elif how == "cut archive":
        stream.write(data[: -rng.randrange(1, 400)])
    else:
        stream.write((60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(10))
    return stream.getvalue(), how


# --- networks -----------------------------------------------------------------------------------------------------

_BEFORE = (
    "x -= 0.1",
    "x *= 1.2",
    "x = x / 255.0",
    "x = x.double().float()",
    "x = (x - x.mean()) / x.std()",
    "x = torch.round(x * 255) / 255",
    "x = x.detach()",
    "x = torch.sqrt(x)",
    "x = torch.log(x)",
    "x = x.clamp(0.2, 0.8)",
    "x = x.permute(0, 1, 3, 2)",
    "x.clamp_(0, 1)",
    "x = x[:, :, ::2, ::2]",
    "x = x.reshape(1, 1, 64, 64)",
    "x = torch.nan_to_num(x / 0.0)",
    "x = x.half().float()",
    "if bool(x.max() > 1.0):\n        x = x / 255.0",
    "assert x.shape[1] == 3",
    "assert x.shape[2] % 32 == 0",
    "x = torch.fft.irfft2(torch.fft.rfft2(x), s=[x.shape[2], x.shape[3]])",
    "x = torch.dropout(x, 0.5, True)",
    "x = x + torch.rand_like(x)",
    "low = x.amin(dim=[2, 3], keepdim=True)\n    x = (x - low) / (x.amax(dim=[2, 3], keepdim=True) - low)",
    "x = x.cuda()",
    "x = x + torch.zeros([1], device=torch.device('cuda:0'))",
    "x = torch.sort(x.flatten(1))[0].view_as(x)",
    "x[:, :, 0] = 0.0",
    "if bool(x.mean() < 0.2):\n        raise RuntimeError('too dark')",
    "x = x.squeeze(1)",
    "x = torch.cat([x, x], dim=1)[:, :1]",
)
_AFTER = (
    "z = z",
    "z = torch.softmax(z, dim=1)",
    "z = torch.exp(z)\n    z /= z.sum(dim=1, keepdim=True)",
    "z = torch.sigmoid(z)\n    z *= 2.0",
    "z = z.argmax(dim=1, keepdim=True)",
    "z = z.argmax(dim=1, keepdim=True).float()",
    "z = (torch.sigmoid(z[:, 1:]) > 0.5).float()",
    "z = z[0]",
    "z = z.permute(0, 2, 3, 1)",
    "z = z[:, :1]",
    "z = z * 0.0",
    "z = z / 0.0",
    "z = z.detach()",
    "z = z.to(torch.float64)",
    "z = torch.nn.functional.interpolate(z, scale_factor=[2.0, 2.0])",
    "z = z[:, :, 1:, 1:]",
    "z = z.half()",
    "z = z.sum()",
    "z = torch.log_softmax(z, dim=1)",
    "z = torch.zeros_like(z)",
    "z = torch.where(z > 0, z, -z)",
    "z = z.to(torch.int64)",
    "z = z * 1e30",
    "z = z.repeat(1, 500, 1, 1)",
    "z = torch.complex(z, z)",
    "z = z + torch.randn_like(z)",
    "z = z.to_sparse()",
)
_GIVES = (
    ("", "return z"),
    ("", "return z"),
    ("", "return z"),
    ("-> Dict[str, Tensor]", "return {'aux': z[:, :, ::2, ::2], 'out': z}"),
    ("-> Tuple[Tensor, Tensor]", "return z, z[:, :, ::2, ::2]"),
    ("-> List[Tensor]", "return [z]"),
    ("-> List[Tensor]", "return []"),
    ("-> Optional[Tensor]", "return None"),
    ("-> int", "return 3"),
    ("-> Tuple[Tensor, int]", "return z, 1"),
    ("-> str", "return 'x'"),
)


class _Defined(torch.jit.ScriptModule):
    """The layers of the small network with a method of one's own. Raises RuntimeError if it cannot be compiled."""

    def __init__(self, program: str) -> None:
        super().__init__()
        flat = Threshold(2)
        self.blur, self.head = flat.blur, flat.head
        self.define(program)


def network(rng: Random, place: Path, stock: Stock) -> Trial:
    """A sound file with a network of odd operations, on its way in, out, or back."""
    before = rng.sample(_BEFORE, rng.choice((0, 1, 1, 2)))
    after = [rng.choice(_AFTER)] if rng.random() < 0.7 else []
    kind, end = rng.choice(_GIVES)
    lines = [*before, "z = self.head(torch.relu(self.blur(x)))", *after, end]
    extra = rng.choice(("", "", "", "", ", prompt: Tensor", ", scale: float = 1.0"))
    program = f"def forward(self, x: Tensor{extra}) {kind}:\n    " + "\n    ".join(lines) + "\n"
    try:
        net = _Defined(program).eval()
    except RuntimeError as exc:  # What does not fit together is no network: the plain one stands for it.
        net = _Defined("def forward(self, x):\n    return self.head(torch.relu(self.blur(x)))\n").eval()
        before.append(f"not compiled: {str(exc)[:60]!r}")
    if rng.random() < 0.1:
        net = rng.choice((net.double, net.half, net.bfloat16, net.train))()
    torch.jit.save(net, str(place / "net.ts"))
    if rng.random() < 0.5:
        (place / "net.toml").write_bytes(stock.data("flat.toml"))
    return _used(rng, place, stock, "net.ts", " | ".join(before + after + [end]))


# --- what stands beside a model -----------------------------------------------------------------------------------


def bundle(rng: Random, place: Path, stock: Stock) -> Trial:
    """A MONAI bundle whose descriptions are damaged."""
    parts = {"metadata.json": METADATA, "inference.json": INFERENCE}
    said, extras = [], {}
    ill = rng.choice((["metadata.json"], ["inference.json"], list(parts)))
    for name, good in parts.items():
        value, what = damage.tree(rng, good) if name in ill else (good, "")
        data = damage.as_json(rng, value).encode(errors="surrogatepass")
        if name in ill and rng.random() < 0.15:
            data, what = damage.text(rng, json.dumps(good, indent=1))
        said += [f"{name}: {what}"] if name in ill else []
        extras[name] = data
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(stock.data("bundle.ts"))) as whole, zipfile.ZipFile(stream, "w") as made:
        for entry in whole.infolist():
            name = entry.filename.rpartition("/")[2]
            data = whole.read(entry)
            made.writestr(entry.filename, extras.get(name, data) if "/extra/" in entry.filename else data)
    (place / "model.ts").write_bytes(stream.getvalue())
    return _described(rng, place, stock, "model.ts", "; ".join(said))


def card(rng: Random, place: Path, stock: Stock) -> Trial:
    """A model card (TOML beside the model) that is damaged."""
    if rng.random() < 0.75:
        value, what = damage.toml_tree(rng, {**CARD, "input": {**CARD["input"]}})
        data = damage.as_toml(value if isinstance(value, dict) else {}).encode(errors="surrogatepass")
        if rng.random() < 0.05:
            data, more = damage.text(rng, data.decode(errors="replace"))
            what += f", {more}"
    else:
        data, what = damage.text(rng, damage.as_toml(CARD))
    stock.copy("flat.ts", place / "model.ts")
    (place / "model.toml").write_bytes(data)
    return _described(rng, place, stock, "model.ts", what)


def _described(rng: Random, place: Path, stock: Stock, name: str, what: str) -> Trial:
    file = rng.choice((name, str(place / name)))
    how = rng.random()
    if how < 0.6:
        as_json = rng.random() < 0.5
        return Trial(("inspect", file, *(("--json",) if as_json else ())), what, as_json=as_json)
    if how < 0.7:
        return Trial(("inspect", file, "--write", "--overwrite"), what, results=("model.toml",))
    scan = str(stock.root / rng.choice(("int16.nii", "ct")))
    return Trial(("attack", scan, "-t", "erase:1", "-m", file, "-o", "out", "--dry-run"), what, results=("out",))
