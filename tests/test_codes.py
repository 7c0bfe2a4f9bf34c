"""Codes that programs compare, with the sentences that people read."""

from __future__ import annotations

import pytest

from mafl_cli.codes import Code, Outcome, Reason, Untested


@pytest.mark.parametrize("code", [*Outcome, *Reason, *Untested], ids=lambda code: code.value)
def test_a_sentence_names_no_option_of_the_command_line(code: Code) -> None:
    """Reports are read by people who use the library, too."""
    assert code.sentence
    assert "--" not in code.sentence
    assert type(code)(code.value) is code
