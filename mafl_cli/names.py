"""What files are called where others can read it: names that are UIDs are never shown, and with `redact` none is.

Names and words of files come from anybody: `one_line` takes out of them what is not text, `harmless` also what a CI job
would obey. Hashes of a file's contents stand for its name then: equal files keep equal names.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath

# Five components and more, or the form made of a UUID.
_UID = re.compile(r"\d+(?:\.\d+){4,}|2\.25\.\d{10,}")
# What ends a line, moves a terminal's cursor or turns the direction of writing, what nobody sees, and bytes that are no
# UTF-8, which no report could hold.
_NOT_SEEN = (
    "\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_NO_TEXT = re.compile(f"[\x00-\x1f{_NOT_SEEN}]")
# What stands below a space is an escape in JSON already, or between its lines.
_NO_TEXT_IN_JSON = re.compile(f"[{_NOT_SEEN}]")
# Words that runners take for commands: GitHub "::" at the beginning of a line and "##[" anywhere, Azure "##vso[".
_COMMAND = re.compile(r"^(?P<space>\s*:)(?=:)|##(?=\w*\[)")


def public_name(path: Path) -> str:
    """The name of a file or folder without its folder, as messages hold it; UIDs, as PACS exports have, are hidden."""
    return _UID.sub("dicom", outside(path.name or path.resolve().name))


def is_there(path: Path) -> bool:
    """Whether a path exists; unlike Path.exists without errors for names that no disk can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def between(text: str, separator: str, there: Callable[[str], bool]) -> tuple[str, ...] | None:
    """The names of files in a text. What is there under a name with separators in it is one file.

    there: whether a file of this name is there.
    Returns None where nothing stands before or after a separator.
    """
    parts = text.split(separator)
    names: list[str] = []
    while parts:
        # The longest first: all of it may be the name of one file.
        counts = range(len(parts), 0, -1)
        spelled = ((n, each) for n in counts for each in _with_and_without_spaces(separator.join(parts[:n])))
        count, name = next((each for each in spelled if there(each[1])), (1, parts[0].strip()))
        if not name:
            return None
        names.append(name)
        del parts[:count]
    return tuple(names)


def _with_and_without_spaces(text: str) -> tuple[str, ...]:
    bare = text.strip()
    return () if not bare else (text,) if text == bare else (text, bare)


def one_line(text: str) -> str:
    """Text that adds no line, moves no cursor and hides nothing: what would is U+FFFD."""
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)


def outside(text: str) -> str:
    """Text from outside as a message holds it: `one_line`, without backticks, which enclose parameters there."""
    return one_line(text).replace("`", "'")


# Backticks in a message enclose a parameter of the library, and nothing else.
_PARAMETER = re.compile(r"`(\w+)`")


def renamed(message: str, name: Callable[[str], str]) -> str:
    """A message with what `name` gives in the place of each parameter and its backticks."""
    return _PARAMETER.sub(lambda found: name(found[1]), message)


def as_keys(message: str) -> str:
    """A message about what stands in a file: a parameter is a key there, and nobody gave it as one."""
    return renamed(message, lambda parameter: parameter)


def harmless(line: str) -> str:
    """`one_line`, with a space in what a runner of CI jobs would take for a command of ours."""
    return _COMMAND.sub(lambda found: f"{found['space'] or '##'} ", one_line(line))


def escaped(text: str) -> str:
    """JSON that says the same without what `harmless` changes: with escapes of its own in the place of it."""
    text = _NO_TEXT_IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return re.sub(r"##(?=\w*\[)", r"#\\u0023", text)


def token(path: Path) -> str:
    """What stands for a file or folder when names are hidden: made of its contents."""
    return f"case-{digest(path)[:12]}"


class Redaction:
    """Replaces the names of some files, of what is in them if they are folders or archives, and of a result folder."""

    def __init__(self, paths: Iterable[Path], out: Path) -> None:
        self._tokens: dict[str, str] = {}
        for path in paths:
            stands = token(path)
            for name in {path.name, path.resolve().name, public_name(path)}:
                self._tokens |= dict.fromkeys((name, SUFFIX.sub("", name), stem(name)), stands)
            for inner in _inner_names(path):
                self._tokens.setdefault(inner, f"file-{hashlib.sha256(inner.encode()).hexdigest()[:12]}")
        self._tokens.setdefault(out.name, "out")
        self._tokens.pop("", None)
        # Longest first, so that no name is taken for a longer one it begins.
        names = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile(r"(?<![\w`])(" + "|".join(map(re.escape, names)) + r")(?![\w`])")

    def __call__(self, text: str) -> str:
        """The text with every name in it replaced."""
        return self._pattern.sub(lambda found: self._tokens[found[0]], text)


def stem(name: str) -> str:
    """A file's name without the suffixes that scans have, however they are written, in Unicode's NFC."""
    return nfc(SUFFIX.sub("", name))


def _inner_names(path: Path) -> Iterator[str]:
    if path.is_dir():
        yield from (file.name for file in path.rglob("*"))
    elif path.is_file() and zipfile.is_zipfile(path):
        # A damaged archive has no names to hide; its reader will say what is wrong.
        with suppress(Exception), zipfile.ZipFile(path) as archive:
            yield from [Path(name).name for name in archive.namelist()]


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of all files below a folder; of the name where nothing can be read."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        return sha256(*files)
    except OSError:
        return hashlib.sha256(path.name.encode()).hexdigest()


def sha256(*files: Path) -> str:
    """Hexadecimal digest of a file's bytes, or of those of several behind each other. Raises OSError."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


# Between words; a line has spaces there.
_BREAKS = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]")


def in_one_line(text: object) -> str:
    """Text of one line, as a terminal and everybody else can take it; see `names.one_line`."""
    return one_line(_BREAKS.sub(" ", str(text)))


# These signs in both widths, at the beginning of a cell, or behind what separates cells in many countries.
_FORMULA = re.compile("(^|;)(?=\\s*[=+@\\-\uff1d\uff0b\uff20\uff0d])")


def cell(text: str) -> str:
    """One line that no spreadsheet runs: what begins like a formula, in full width too, is quoted as they do."""
    return _FORMULA.sub(r"\1'", harmless(in_one_line(text)))


SUFFIX = re.compile(r"(?:\.nii)?\.gz$|\.(?:nii|zip|dcm)$", re.IGNORECASE)
# Longest id, in bytes of UTF-8: any file system takes it, with room for what is put behind it.
_LONGEST = 120
_UNSAFE = frozenset('<>:"/\\|?*')
_UNPRINTED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_DEVICE = re.compile(r"CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]", re.IGNORECASE)
# What lies in the folder of a batch beside its cases.
_BESIDE_CASES = re.compile(r"report\.json|cases\.csv|failed\.txt|page\.html", re.IGNORECASE)


def case_name(path: Path) -> str:
    """What a file or folder calls its case: its name without the suffixes that scans have, in Unicode's NFC."""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    return stem(name)


def safe_id(name: str) -> str:
    """A name as a folder may have it on every system, without UIDs."""
    printable = "".join(
        "_" if char in _UNSAFE or unicodedata.category(char) in _UNPRINTED else char for char in nfc(name)
    )
    # Windows drops dots and spaces at the end, and what begins with a dot is hidden.
    bare = public_name(Path(printable.strip(". ") or "case"))
    short = bare.encode()[:_LONGEST].decode(errors="ignore").strip(". ")
    taken = _DEVICE.fullmatch(short.split(".")[0].strip()) or _BESIDE_CASES.fullmatch(short)
    return f"_{short}" if taken else short


def distinct_ids(names: Sequence[str]) -> list[str]:
    """Safe ids for names; where one was there before (in any case of letters), with a number behind it."""
    ids = [safe_id(name) for name in names]
    taken = {folded(each) for each in ids}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for index, first in enumerate(ids):
        if folded(first) in seen:
            # A generated number never takes a name that a case has.
            while folded(ids[index]) in taken:
                numbers[folded(first)] += 1
                ids[index] = f"{first}-{numbers[folded(first)] + 1}"
            taken.add(folded(ids[index]))
        seen.add(folded(first))
    return ids


def natural(text: str) -> tuple[list[str | int], str]:
    """Key for sorting case2 before case10."""
    parts = re.split(r"([0-9]+)", text.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


def nfc(text: str) -> str:
    """Text in the one form of Unicode that names are compared in."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """What file systems that do not tell letters apart compare."""
    return nfc(text.casefold())


def shown_path(text: str) -> str:
    """What may be a path, of this system or of Windows, without its folders."""
    return public_name(Path(PureWindowsPath(text).name or "(no name)"))
