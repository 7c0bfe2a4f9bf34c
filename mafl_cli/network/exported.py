"""Reading a `.pt2` (torch.export) without running anything but its graph of operators.

`torch.export.load` unpickles what it cannot load otherwise, loads compiled libraries, evaluates the text of symbolic
sizes and guards, and pastes names into generated code. So it never sees the file: the records that the network needs
are read here, checked, and written into an archive of their own. Tensors come from weights-only loading; names are
names, sizes are arithmetic, operators are PyTorch's; what is anything else is refused.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mafl_cli.errors import ModelError
from mafl_cli.names import outside
from mafl_cli.network.archives import Damaged, open_archive, read_record

OLD = "serialized_exported_program.json"
"""The program in files of PyTorch before 2.8; later ones have it as models/model.json."""
_NEW = "models/model.json"
_REMEDY = "export the network again with torch.export, a plain tensor as its example"


def read_exported(path: Path) -> torch.export.ExportedProgram:
    """The program in a .pt2. Raises ModelError if more than a network would run; Damaged; what PyTorch raises."""
    with open_archive(path) as archive:
        names = archive.namelist()
        if OLD in names:
            clean = _old_format(archive, outside(path.name))
        elif any(name.partition("/")[2] == _NEW for name in names):
            clean = _new_format(archive, names[0].partition("/")[0], outside(path.name))
        elif any("aotinductor/" in name for name in names):
            raise ModelError(f"{outside(path.name)}: is compiled (AOTInductor), which has no gradient; {_REMEDY}.")
        else:
            raise Damaged("its program is missing")
    with _silence() as heard:
        try:
            return torch.export.load(clean)
        except Exception as exc:
            # PyTorch says the reason to its log and raises something else.
            raise heard[0] if heard else exc from None


def _old_format(archive: zipfile.ZipFile, name: str) -> io.BytesIO:
    """Up to PyTorch 2.7: tensors are pickles."""
    program = _program(read_record(archive, OLD), name)
    parts = {OLD: program, "version": read_record(archive, "version")}
    for part, what in (
        ("serialized_state_dict.pt", "weights"),
        ("serialized_constants.pt", "constants"),
        ("serialized_example_inputs.pt", "sample inputs"),
    ):
        parts[part] = _plain_tensors(read_record(archive, part), what, name)
    return _written(parts)


def _new_format(archive: zipfile.ZipFile, root: str, name: str) -> io.BytesIO:
    """Since PyTorch 2.8: tensors are bytes, described in JSON; sample inputs and all that is not a tensor are
    pickles."""
    have = set(archive.namelist())

    def record(inside: str) -> bytes:
        return read_record(archive, f"{root}/{inside}")

    parts = {_NEW: _program(record(_NEW), name)}
    for kind in ("weights", "constants"):
        whole = f"data/{kind}/model.pt"
        if f"{root}/{whole}" in have:
            parts[whole] = _plain_tensors(record(whole), kind, name)
            continue
        table = f"data/{kind}/model_{kind}_config.json"
        config = _json(record(table), name)
        parts[table] = json.dumps(config).encode()
        for fact in _payloads(config, kind, name):
            inside = f"data/{kind}/{fact['path_name']}"
            parts[inside] = record(inside)
            _check_size(fact["tensor_meta"], len(parts[inside]))
    parts["data/sample_inputs/model.pt"] = _plain_tensors(record("data/sample_inputs/model.pt"), "sample inputs", name)
    for inside in ("archive_format", "archive_version", "byteorder", ".data/version"):
        if f"{root}/{inside}" in have:
            parts[inside] = record(inside)
    return _written({f"model/{inside}": data for inside, data in parts.items()})


def _written(parts: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    file.seek(0)
    return file


# --- tensors ------------------------------------------------------------------------------------------------------


def _plain_tensors(pickled: bytes, what: str, name: str) -> bytes:
    """A record of PyTorch's own pickles, loaded as tensors alone and written again."""
    if not pickled:
        return pickled
    refusal = f"{name}: its {what} are pickled Python objects, which are not run; {_REMEDY}."
    # An older PyTorch runs code from one of its older formats even so; the one in use is a zip archive.
    if pickled[:2] != b"PK":
        raise ModelError(refusal)
    try:
        found = torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
    except Exception as exc:  # a pickle of anything else, or of nonsense, raises what it likes
        raise ModelError(refusal) from exc
    file = io.BytesIO()
    torch.save(found, file)
    return file.getvalue()


def _payloads(config: Any, kind: str, name: str) -> Iterator[dict[str, Any]]:
    """Every tensor that a table of weights or constants names."""
    table = config.get("config") if isinstance(config, dict) else None
    if not isinstance(table, dict):
        raise Damaged(f"its table of {kind} is not as it was written")
    for key, fact in table.items():
        if not isinstance(fact, dict) or not isinstance(fact.get("path_name"), str):
            raise Damaged(f"its table of {kind} is not as it was written")
        if fact.get("use_pickle") or not fact["path_name"].startswith(("weight_", "tensor_")):
            raise ModelError(f"{name}: its {kind} are pickled Python objects, which are not run; {_REMEDY}.")
        if not _PATH.fullmatch(key) or not _NAME.fullmatch(fact["path_name"]):
            raise _refused(name, "a name")
        _walk(fact.get("tensor_meta"), "tensor_meta", name)
        yield fact


_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2}
"""Bytes of an element, by the number of its type in the format."""


def _check_size(meta: Any, held: int) -> None:
    """Whether a tensor lies within its record; PyTorch makes zeros of an empty one."""
    try:
        sizes, strides = ([int(entry["as_int"]) for entry in meta[key]] for key in ("sizes", "strides"))
        first = int(meta["storage_offset"]["as_int"])
        width = _WIDTHS.get(meta["dtype"], 1)
    except (TypeError, LookupError, ValueError) as exc:
        raise Damaged("its table of weights is not as it was written") from exc
    last = first + sum((edge - 1) * step for edge, step in zip(sizes, strides, strict=False))
    if math.prod(sizes) and (last + 1) * width > held:
        raise Damaged(f"the record of one of its weights holds {held} bytes of {(last + 1) * width}")


# --- the program --------------------------------------------------------------------------------------------------

_NAME = re.compile(r"\w{0,200}", re.ASCII)
_PATH = re.compile(r"(?:[\w-]+(?:\.[\w-]+)*)?", re.ASCII)
_WORDS = re.compile(r"[\w.+<>=: -]{0,200}", re.ASCII)
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|torchvision|quantized_decomposed)\.\w+(?:\.\w+)?"
    r"|torch\.ops\.higher_order\.(?:cond|map_impl|while_loop|scan|associative_scan|wrap_with_set_grad_enabled"
    r"|wrap_with_autocast|tag_activation_checkpoint)"
    r"|_operator\.(?!attrgetter|methodcaller|itemgetter|call)[a-z]\w*|math\.[a-z]\w*|torch\.(?:_sym|sym)_\w+",
    re.ASCII,
)
_REACHING = re.compile(r"torch\.ops\.aten\.(?:from_file|save|_print|warn)\b")
# Whatever a text field may hold, by its name; every other text is a name.
_TEXTS: dict[str, re.Pattern[str]] = {
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "fqn"), _PATH),
    **dict.fromkeys(("torch_version", "verifiers", "opset_version", "treespec_namedtuple_fields", "type"), _WORDS),
}


def _program(data: bytes, name: str) -> bytes:
    """The program's JSON, checked throughout, without the metadata that no computation needs."""
    program = _json(data, name)
    try:
        found = _walk(program, "", name)
    except RecursionError:
        raise Damaged("its program is nested too deeply") from None
    return json.dumps(found).encode()


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Damaged("its program is not JSON that can be read") from exc


def _refused(name: str, what: str) -> ModelError:
    return ModelError(f"{name}: {what} in its program is not part of a network; {_REMEDY}.")


def _walk(value: Any, key: str, name: str) -> Any:
    """A copy of the program in which every text is what its field may hold. Raises ModelError for anything else."""
    if key == "metadata":
        return {}  # Stack traces and module names of the machine it was exported on.
    if isinstance(value, dict):
        if key != "range_constraints" and not all(_TEXTS.get(key, _PATH).fullmatch(each) for each in value):
            raise _refused(name, "a name")
        if key == "range_constraints" and not all(map(is_arithmetic, value)):
            raise _refused(name, "a size")
        if set(value) & {"as_custom_obj", "custom_obj"}:
            raise ModelError(f"{name}: holds a custom object, which is not run; {_REMEDY}.")
        return {each: _walk(inner, each, name) for each, inner in value.items()}
    if isinstance(value, list):
        return [_walk(inner, key, name) for inner in value]
    if isinstance(value, str):
        _check_text(value, key, name)
    return value


def _check_text(text: str, key: str, name: str) -> None:
    if key in ("as_string", "as_strings"):
        return  # A value, which is quoted wherever it goes.
    if key in ("target", "as_operator"):
        if not _OPERATOR.fullmatch(text) or _REACHING.match(text):
            shown = text.removeprefix("torch.ops.") if _WORDS.fullmatch(text) else "with a strange name"
            raise ModelError(
                f"{name}: calls the operator {shown}, which is not one of PyTorch's for networks; export without it."
            )
    elif key in ("expr_str", "guards_code"):
        if not is_arithmetic(text):
            raise _refused(name, "a size")
    elif key in ("in_spec", "out_spec"):
        if not _is_structure(text):
            raise _refused(name, "the structure of its inputs")
    elif not _TEXTS.get(key, _NAME).fullmatch(text):
        raise _refused(name, "a name")


# fmt: off
_FUNCTIONS = frozenset((
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Eq", "Ne", "Lt", "Le",
    "Gt", "Ge", "And", "Or", "Not", "Piecewise", "ExprCondPair", "Equality", "Unequality", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan", "BooleanTrue", "BooleanFalse", "FloorDiv", "CeilDiv", "CleanDiv", "PythonMod",
    "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "TruncToInt", "TruncToFloat", "RoundToInt", "RoundDecimal",
    "FloorToInt", "CeilToInt", "ToFloat", "Identity", "IsNonOverlappingAndDenseIndicator", "PowByNatural", "FloatPow",
    "LShift", "RShift", "Where", "Half", "One", "Zero", "NegativeOne", "floor", "ceiling", "ceil", "sqrt", "trunc",
    "abs", "max", "min", "int", "float", "round",
))
# fmt: on
_NODES: tuple[type[ast.AST], ...] = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.IfExp,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Constant,
    ast.Subscript,
    ast.Attribute,
    ast.Tuple,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)  # fmt: skip


def is_arithmetic(text: str) -> bool:
    """Whether a text that PyTorch evaluates is arithmetic over symbols and sizes of inputs, and nothing else."""
    # One line of plain characters: what is evaluated is then what is looked at here.
    if not re.fullmatch(r"[\w ()\[\],.'+\-*/%<>=!&|~^]{1,20000}", text, re.ASCII):
        return False
    try:
        tree = ast.parse(text, mode="eval")
        return all(isinstance(node, _NODES) and _harmless(node) for node in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute):  # L['x'].size(), math.ceil(...)
            return function.attr in (
                "size",
                "stride",
                "storage_offset",
                "numel",
                "dim",
                "ceil",
                "floor",
                "trunc",
                "sqrt",
            )
        if not isinstance(function, ast.Name) or function.id not in _FUNCTIONS:
            return False
        # A tower of powers never ends.
        return function.id not in ("Pow", "PowByNatural", "FloatPow", "LShift") or _is_small(node.args[-1:])
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return _is_small([node.right])
    if isinstance(node, ast.Attribute):
        return not node.attr.startswith("_") and isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Name):
        return _NAME.fullmatch(node.id) is not None and not node.id.startswith("__")
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str) or _NAME.fullmatch(node.value) is not None
    return True


def _is_small(exponents: list[ast.expr]) -> bool:
    """Whether an exponent is a plain number of at most 8, either way."""
    try:
        (exponent,) = exponents
        text = ast.unparse(exponent).removeprefix("Integer(").rstrip(")")
        return abs(float(text)) <= 8
    except ValueError:
        return False


def _is_structure(text: str) -> bool:
    """Whether the description of how inputs or outputs are nested names nothing but containers and plain keys."""

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(plain, (*value, *value.values())))
        if isinstance(value, list):
            return all(map(plain, value))
        if isinstance(value, str) and value[:1] in ("[", "{", '"'):
            return plain(json.loads(value))  # The context of a container is JSON once more.
        return not isinstance(value, str) or (_PATH.fullmatch(value) is not None and not value.startswith("__"))

    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError):
        return False


@contextmanager
def _silence() -> Iterator[list[BaseException]]:
    """PyTorch's loggers and warnings say nothing; the exceptions that they would have shown are collected."""
    heard: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            heard.append(record.exc_info[1])
        return False

    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)
    ]
    filters: list[tuple[logging.Logger, Callable[[logging.LogRecord], bool]]] = [(each, keep) for each in loggers]
    for logger, each in filters:
        logger.addFilter(each)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield heard
    finally:
        for logger, each in filters:
            logger.removeFilter(each)
