"""`mafl evaluate`: options become a request, a library call measures and judges, its result lines and an exit code."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mafl_cli.cli.application import EXIT_CODES, app
from mafl_cli.cli.console import Voice, deliver, progress_of_cases, reported, show_text, tell_github, write_all
from mafl_cli.cli.flags import in_flags
from mafl_cli.cli.groups import FILES, GATES, OUTPUT, READERS, TRIALS, Grouped, HelpAll, expanded, under
from mafl_cli.cli.options import (
    CommandTimeout,
    Ensemble,
    Json,
    MaybePath,
    MaybeStr,
    ModelCommand,
    SizeLimit,
    Trust,
    ViewOptions,
    Words,
)
from mafl_cli.cli.reading import (
    between_commas,
    files_between_commas,
    model_or_default,
    models_at_hand,
    require_folders,
    require_no_input,
    require_view,
)
from mafl_cli.errors import GateError, PartialError, UsageError
from mafl_cli.system import sizes

if TYPE_CHECKING:
    from mafl_cli.judging.gates import Gate
    from mafl_cli.judging.trials import Trials
    from mafl_cli.results.evaluation_report import Evaluation

Runs = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Argument(metavar="RUN", help="Result folders of `mafl attack`, or folders that hold some."),
]


@dataclass
class EvaluateFiles:
    """What is judged, beside or instead of runs, and the models that judge."""

    original: Annotated[
        MaybeStr,
        under(
            FILES,
            metavar="SCAN|DIR",
            help="Instead of RUN: the clean scan (channels separated by commas), or a folder of them.",
        ),
    ] = None
    adversarial: Annotated[
        MaybeStr, under(FILES, metavar="SCAN|DIR", help="The adversarial scan, or a folder of them, matched by name.")
    ] = None
    target: Annotated[
        MaybeStr,
        under(
            FILES, "--target", "-t", metavar="MASK|DIR", help="The target mask, or a folder of masks, matched by name."
        ),
    ] = None
    prediction_clean: Annotated[
        MaybeStr,
        under(
            FILES,
            "--prediction-clean",
            metavar="MASK|DIR",
            help="Instead of --model: what it drew on the clean scan, a mask on the scan's grid, or a folder of masks, "
            "matched by name.",
        ),
    ] = None
    prediction_adversarial: Annotated[
        MaybeStr,
        under(FILES, "--prediction-adversarial", metavar="MASK|DIR", help="The same for the adversarial scan."),
    ] = None
    classes: Annotated[
        MaybeStr,
        under(
            FILES,
            "--classes",
            metavar="NAMES",
            help="Names of the classes in these predictions, by number, as background,liver,spleen. [default: those "
            "that target and clean prediction have]",
        ),
    ] = None
    ground_truth: Annotated[
        MaybePath,
        under(
            FILES,
            metavar="MASK|DIR|FILE",
            help="The ground truth, a mask on the scan's grid; or a folder of masks by the names of the cases; or the "
            "manifest or dataset.json that the batch was made from.",
        ),
    ] = None
    model: Annotated[
        Optional[list[Path]],  # noqa: UP045
        under(
            FILES,
            "--model",
            "-m",
            metavar="MODEL",
            help="Model of any kind that draws the predictions; the first judges, others show whether they are fooled "
            "too (with --ensemble all are one). It is a program: use only files you trust. [default: $MAFL_MODEL, else "
            "the model that comes with mafl; a RUN that attacked another one passes no gate without it]",
        ),
    ] = None
    model_command: ModelCommand = None
    command_timeout: CommandTimeout = None
    ensemble: Ensemble = None
    trust: Trust = False
    size_limit: SizeLimit = None

    @property
    def predicted(self) -> bool:
        """Whether predictions are given, or a program that makes them, so that no model file is asked."""
        given = (self.prediction_clean, self.prediction_adversarial, self.model_command)
        return any(each is not None for each in given)

    def read(self) -> list[Path]:
        """The files and folders that are read."""
        found = [*(self.model or ()), *((self.ground_truth,) if self.ground_truth else ())]
        named = {
            "--original": self.original,
            "--adversarial": self.adversarial,
            "--target": self.target,
            "--prediction-clean": self.prediction_clean,
            "--prediction-adversarial": self.prediction_adversarial,
        }
        for option, scans in named.items():
            found += () if scans is None else files_between_commas(scans, option)
        return found


@dataclass
class EvaluateChecks:
    """What is asked of the model beside its prediction."""

    transforms: Annotated[
        Optional[list[str]],  # noqa: UP045
        under(
            TRIALS,
            "--transform",
            metavar="KIND[:STRENGTH]",
            help="Judge again after: blur:VOXELS, median:VOXELS, resample:FACTOR, bits:N, jpeg:QUALITY, "
            "jpeg2000:RATIO, noise:SHARE, gamma:EXPONENT, crop:VOXELS, lowpass:SHARE; all; several usual strengths "
            "where none is given.",
        ),
    ] = None
    detect: Annotated[
        bool,
        under(
            TRIALS,
            "--detect",
            help="Can a mild blur, entropy or margin of the probabilities tell adversarial scans from clean ones?",
        ),
    ] = False
    curve: Annotated[
        bool,
        under(
            TRIALS,
            "--curve",
            help="Target IoU of smaller multiples of the change, and the smallest one that reaches the goal.",
        ),
    ] = False

    def trials(self) -> Trials:
        """Raises UsageError for a transform that is not understood."""
        from mafl_cli.field import transforms
        from mafl_cli.judging.trials import Trials

        return Trials(transforms=transforms.parse(self.transforms or ()), detect=self.detect, curve=self.curve)


@dataclass
class EvaluateReaders:
    """People instead of models."""

    reader_study: Annotated[
        MaybePath,
        under(
            READERS,
            "--reader-study",
            metavar="FILE...",
            help="What people told apart: the key of a study of `mafl visualize`, and behind it the answers of each "
            "reader. Models are not asked; of the other options only --json and those of words apply.",
        ),
    ] = None


@dataclass
class Gates:
    """What the figures must be."""

    fail_if: Annotated[
        Optional[list[str]],  # noqa: UP045
        under(
            GATES,
            "--fail-if",
            metavar="EXPR",
            help='Exit with 5 if true, as "target_iou > 0.5" for the worst case, "mean(dice_drop) > 0.1", also median '
            "and p95. A figure that is missing or undefined fails too. docs/evaluate.md lists the figures.",
        ),
    ] = None
    gates_file: Annotated[
        MaybePath, under(GATES, "--gates", metavar="TOML", help='File with a table [gates] of lines: name = "EXPR".')
    ] = None

    def rules(self) -> list[Gate]:
        """Raises UsageError for a gate that is not understood, InputError for a file that cannot be read."""
        from mafl_cli.judging import gates

        return [*map(gates.parse, self.fail_if or ()), *(gates.read(self.gates_file) if self.gates_file else ())]


@dataclass
class EvaluateOutput:
    """Where the verdict goes."""

    json_file: Json = None
    junit_file: Annotated[MaybeStr, under(OUTPUT, "--junit", metavar="FILE", help="Gates as JUnit XML.")] = None
    card_file: Annotated[
        MaybeStr, under(OUTPUT, "--card", metavar="FILE", help="Robustness card, Markdown; - is stdout.")
    ] = None
    csv_file: Annotated[MaybeStr, under(OUTPUT, "--csv", metavar="FILE", help="A row for each case.")] = None

    def files(self) -> dict[str, str | None]:
        """The files that were asked for, by option; None for those that were not."""
        return {"--json": self.json_file, "--junit": self.junit_file, "--card": self.card_file, "--csv": self.csv_file}

    def require(self, read: list[Path]) -> None:
        """Before anything is computed: the files can be written, and take the place of nothing that is read."""
        from mafl_cli.results.read import read_object

        require_folders(self.files())
        given = [file for file in self.files().values() if file is not None]
        if len({Path(file).resolve() for file in given}) < len(given):
            raise UsageError(
                "--json, --junit, --card and --csv must be different files, and only one of them can be stdout."
            )
        # The scans of a pair may lie in a run, beside its report.
        reports = [Path(file) for file in given if Path(file).is_file() and "run" in (read_object(Path(file)) or ())]
        require_no_input(self.files(), [*read, *reports])

    def write(self, measured: Evaluation) -> None:
        """Write what was asked for."""
        from mafl_cli.judging import ci, robustness_card
        from mafl_cli.system.records import to_json

        write_all(
            {
                self.json_file: lambda: to_json(measured),
                self.junit_file: lambda: ci.junit(measured),
                self.card_file: lambda: robustness_card.card(measured),
                self.csv_file: lambda: robustness_card.table(measured),
            }
        )


@app.command(cls=Grouped, epilog=EXIT_CODES)
@expanded
def evaluate(
    *,
    runs: Runs = None,
    files: EvaluateFiles,
    asked: EvaluateChecks,
    view: ViewOptions,
    readers: EvaluateReaders,
    gates: Gates,
    output: EvaluateOutput,
    words: Words,
    help_all: HelpAll,
) -> None:
    """Measure runs, or any pairs of scans, again from their files, and judge the model by gates.

    In a GitHub job a summary of the verdict goes to the job's page, and failed gates are annotated.
    """
    voice = words.voice()
    with reported(voice), sizes.limited(files.size_limit):
        if readers.reader_study is not None:
            _require_alone(files, asked, view, gates, output)
            _judge_readers([readers.reader_study, *(runs or ())], output, voice)
            return
        rules, trials = gates.rules(), asked.trials()
        output.require([*(runs or ()), *files.read(), *((gates.gates_file,) if gates.gates_file else ())])
        require_view(view.given())
        from mafl_cli import api

        alone = not (files.model or runs or files.predicted)
        judges = [model_or_default(voice)] if alone else files.model or []
        with progress_of_cases(voice, "case") as bar:
            measured = api.evaluate(
                runs or (),
                original=files.original,
                adversarial=files.adversarial,
                target=files.target,
                model=judges,
                ensemble=files.ensemble,
                trust=files.trust,
                model_command=files.model_command,
                command_timeout=files.command_timeout,
                prediction_clean=files.prediction_clean,
                prediction_adversarial=files.prediction_adversarial,
                classes=None if files.classes is None else between_commas(files.classes, "--classes"),
                at_hand=models_at_hand() if runs and not (files.model or files.predicted) else (),
                ground_truth=files.ground_truth,
                trials=trials,
                fail_if=rules,
                say=voice.say,
                on_case=bar.show,
                **view.given(),
            )
        output.write(measured)
        _tell(measured, voice, as_text="-" not in output.files().values())
        _require_passed(measured)


def _require_alone(files: EvaluateFiles, asked: EvaluateChecks, view: ViewOptions, rules: Gates, output: Any) -> None:
    """Raise UsageError where something is given that is about models, and would be ignored."""
    others = {**vars(files), **vars(asked), **vars(view), **vars(rules), **vars(output)}
    plain = {each.name: each.default for group in (files, asked, view, rules, output) for each in fields(group)}
    given = [name for name in others if others[name] != plain[name] and name not in ("json_file", "size_limit")]
    if given:
        raise UsageError(in_flags(f"with --reader-study, leave out `{given[0]}`: it is about models."))


def _judge_readers(files: list[Path], output: EvaluateOutput, voice: Voice) -> None:
    """The shares that readers told apart, as JSON and in words."""
    from mafl_cli.judging import reader_study

    wanted = {"--json": output.json_file}
    require_folders(wanted)
    require_no_input(wanted, files)
    judged = reader_study.judge_reader_study(files)
    deliver(judged, reader_study.terminal(judged), output.json_file, voice)


def _tell(measured: Evaluation, voice: Voice, *, as_text: bool) -> None:
    """What a user should know of the cases, and the verdict on the terminal and on the page of a CI job."""
    from mafl_cli.judging import ci, robustness_card, terminal

    for case in measured.judged:
        untested = [] if case.untested is None else [case.untested.sentence]
        for line in dict.fromkeys([*case.differences, *untested]):
            voice.say(f"{case.case_id}: {line}")
    if voice.level >= 0 and as_text:
        show_text(in_flags(terminal.terminal(measured)))
    tell_github(robustness_card.summary(measured), ci.alerts(measured), voice)


def _require_passed(measured: Evaluation) -> None:
    """Raise GateError for a failed gate, else PartialError for a failed case."""
    failed = measured.failed_gates
    if failed:
        first = f"fail if {failed[0].expression}: {failed[0].reason}".removesuffix(".")
        raise GateError(f"{len(failed)} of {len(measured.gates)} gates failed: {first}.")
    broken = [case.case_id for case in measured.cases if case.status != "ok"]
    if broken:
        raise PartialError(f"{len(broken)} of {len(measured.cases)} cases could not be judged: {', '.join(broken)}.")
