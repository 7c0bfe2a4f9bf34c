"""What readers told apart: the answers of a reader study against its key.

A file that is damaged, edited or of another study is refused, and so are two files of one reader: a share of a part of
the pairs, or of some pairs twice, would not be the share that the study asks for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mafl_cli.errors import InputError, UsageError
from mafl_cli.measure.proportions import Proportion, proportion
from mafl_cli.names import public_name
from mafl_cli.results.envelope import NOTICE, SCHEMA_VERSION, TOOL
from mafl_cli.results.reader_study import PairTold, ReaderStudy, ReaderTold, StudyAnswers, StudyKey, Told
from mafl_cli.system import records
from mafl_cli.system.documents import read_json_text

_KIND = {"reader-study-key": StudyKey, "reader-study-answers": StudyAnswers}


def judge_reader_study(files: Sequence[Path]) -> ReaderStudy:
    """What all readers told apart, each of them and together.

    files: the key of the study, and the answers of each reader, in any order.
    Raises UsageError for a file that cannot be read, was edited, or does not belong to the others.
    """
    read = [(path, _read(path)) for path in files]
    keys = [(path, each) for path, each in read if isinstance(each, StudyKey)]
    answers = [(path, each) for path, each in read if isinstance(each, StudyAnswers)]
    if len(keys) != 1:
        raise UsageError(
            f"a reader study needs one key, got {len(keys)}: give the .key.json that was written beside the page."
        )
    key_file, key = keys[0]
    if not answers:
        raise UsageError(f"{public_name(key_file)}: is the key; give the files that readers saved, too.")
    seen: dict[str, Path] = {}
    for path, each in answers:
        _require_belongs(path, each, key_file, key)
        if each.reader in seen:
            raise UsageError(
                f"{public_name(path)}: reader {each.reader} is in {public_name(seen[each.reader])} too: give one file "
                "for each reader."
            )
        seen[each.reader] = path
    return _judged(key, [each for _, each in answers])


def _read(path: Path) -> StudyKey | StudyAnswers:
    name = public_name(path)
    try:
        found, text = read_json_text(path)
        kind = _KIND.get(str(found.get("kind"))) if isinstance(found, dict) else None
        if kind is None:
            raise InputError(f"{name}: is not the key of a reader study, nor the answers of a reader.")
        read: StudyKey | StudyAnswers = records.read_text(kind, text, name)
    except InputError as exc:
        raise UsageError(str(exc)) from exc
    if not read.intact:
        what = "write the study again" if isinstance(read, StudyKey) else "ask the reader for the file that was saved"
        raise UsageError(f"{name}: was edited after it was saved: {what}.")
    return read


def _require_belongs(path: Path, answers: StudyAnswers, key_file: Path, key: StudyKey) -> None:
    if answers.study != key.study:
        raise UsageError(f"{public_name(path)}: has answers of another study than {public_name(key_file)}.")
    times = Counter(each.pair for each in answers.answers)
    if set(times) != set(range(1, len(key.pairs) + 1)) or max(times.values()) > 1:
        raise UsageError(
            f"{public_name(path)}: must have one answer for each of {len(key.pairs)} pairs, has {len(answers.answers)} "
            f"for {len(times)}."
        )


def _judged(key: StudyKey, answers: Sequence[StudyAnswers]) -> ReaderStudy:
    different = [{each.pair for each in reader.answers if each.answer == "different"} for reader in answers]
    changed = {number for number, pair in enumerate(key.pairs, 1) if pair.changed}
    controls = set(range(1, len(key.pairs) + 1)) - changed
    if not changed or not controls:
        raise UsageError("the key must have changed pairs and controls: write the study again.")

    def share(of: set[int], readers: Sequence[set[int]]) -> Proportion:
        return proportion(sum(len(said & of) for said in readers), len(of) * len(readers))

    return ReaderStudy(
        schema_version=SCHEMA_VERSION,
        tool=TOOL,
        notice=NOTICE,
        command="evaluate",
        study=key.study,
        seed=key.seed,
        cases=key.cases,
        changed=len(changed),
        controls=len(controls),
        without_difference=sum(key.pairs[number - 1].grey_levels == 0 for number in changed),
        readers=tuple(
            ReaderTold(reader=reader.reader, recognised=share(changed, [said]), false_alarms=share(controls, [said]))
            for reader, said in zip(answers, different, strict=True)
        ),
        together=Told(recognised=share(changed, different), false_alarms=share(controls, different)),
        pairs=tuple(
            PairTold(**vars(pair), pair=number, called_different=sum(number in said for said in different))
            for number, pair in enumerate(key.pairs, 1)
        ),
    )


def terminal(study: ReaderStudy) -> str:
    """Lines for a terminal: what each reader recognised, and how often each saw what was not there."""
    rows = [("reader", "recognised", "95 % interval", "false alarms", "95 % interval")]
    named = [(each.reader, each) for each in study.readers]
    for name, told in [*named, *([("together", study.together)] if len(named) > 1 else [])]:
        rows.append((name, *_shown(told.recognised), *_shown(told.false_alarms)))
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        f"{study.changed} changed pairs, {study.controls} controls (the same picture twice)",
        *(
            "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ),
    ]
    if study.without_difference:
        lines.append(f"  in {study.without_difference} of the changed pairs no pixel of the screen differs")
    if len(named) > 1:
        lines.append("  together: as if no two answers were about one pair, so the true interval is wider")
    return "\n".join(lines)


def _shown(found: Proportion) -> tuple[str, str]:
    return f"{found.count} of {found.of} ({found.share:.1%})", f"{found.low:.1%} to {found.high:.1%}"
