"""JSON that somebody else wrote: what its texts may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mafl_cli.errors import InputError
from mafl_cli.names import one_line
from mafl_cli.system.documents import read_json, read_json_text


@settings(max_examples=60)
@given(text=st.text(st.characters(codec="utf-8"), max_size=12), escaped=st.booleans())
def test_every_text_is_one_line_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, text: str, escaped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps({"a": [text], "b\t": 1}, ensure_ascii=escaped, indent=1), encoding="utf-8")
    assert read_json(path) == {"a": [one_line(text)], one_line("b\t"): 1}
    found, same = read_json_text(path)
    assert found == json.loads(same) == read_json(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "a name stands twice in one object"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e999}', "a number is too large"),
        ('{"a": 12345678901234567890}', "a number has too many digits"),
        ('{"a": "\x01"}', "line 1 is damaged"),
        ('{"a": 1}\n}', "line 2 is damaged"),
    ],
)
def test_text_of_a_file_is_given_only_if_it_is_strict_json(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^a\.json: cannot be read as JSON \({why}\)\.$"):
        read_json_text(tmp_path / "a.json")


@pytest.mark.parametrize("sign", ["\x7f", "\u0085", "\u2028", "\u202e", "\u009b"], ids=ascii)
def test_what_moves_or_hides_is_replaced_where_nothing_is_escaped(tmp_path: Path, sign: str) -> None:
    (tmp_path / "a.json").write_text(f'{{\n\t"a": "x{sign}y"\n}}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": "x\N{REPLACEMENT CHARACTER}y"}
