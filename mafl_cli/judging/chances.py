"""What chance does to a verdict, where the judging model answers differently each time."""

from __future__ import annotations

from mafl_cli.classes import Labels
from mafl_cli.judging.judges import Comparison, Judge
from mafl_cli.measure import agreement
from mafl_cli.measure.draws import draws_of
from mafl_cli.measure.records import Draws
from mafl_cli.measure.value import Value, defined
from mafl_cli.results.quantities import OF_DRAWS, QUANTITIES
from mafl_cli.results.recorded import Recorded


def draws_by(judge: Judge, compared: Comparison, truth: Labels | None, *, reached: bool) -> Draws | None:
    """What single draws of the judging model have; None if it always answers the same.

    truth: the true classes. reached: whether what most draws have is at the goal.
    """
    if not judge.adversarial_draws:
        return None
    return draws_of(
        [
            _measured(compared, before, after, truth)
            for before, after in zip(judge.clean_draws, judge.adversarial_draws, strict=True)
        ],
        {name: QUANTITIES[name].span for name in OF_DRAWS},
        [compared.reached(after) for after in judge.adversarial_draws],
        reached=reached,
        unsettled=judge.unsettled,
    )


def _measured(compared: Comparison, before: Labels, after: Labels, truth: Labels | None) -> dict[str, Value]:
    """One draw of the clean scan and one of the adversarial scan."""

    def of(labels: Labels, target: Labels) -> dict[str, Value]:
        return agreement.of_draw(labels, target, compared.clean, compared.classes)

    found = of(after, compared.target)
    found["target_iou_clean"] = of(before, compared.target)["target_iou"]
    if truth is not None:
        clean, adversarial = (of(labels, truth)["target_dice"] for labels in (before, after))
        known = clean.value is not None and adversarial.value is not None
        drop = defined(clean.number - adversarial.number) if known else clean
        found |= {"dice_clean": clean, "dice_adversarial": adversarial, "dice_drop": drop}
    return found


def by_chance(draws: Draws | None) -> tuple[int, int]:
    """In how many voxels the clean and the adversarial prediction may differ by chance from those that the run wrote.

    Halves of the draws differ more than all of them do from as many others.
    """
    return (0, 0) if draws is None else (2 * draws.unsettled.clean, 2 * draws.unsettled.adversarial)


def width(recorded: Recorded, draws: Draws | None, figure: str) -> float:
    """By how much a figure may differ from that of the report by chance: both intervals, end to end."""
    both = (recorded.case.metrics.draws, draws)
    found = [each.figures[figure] for each in both if each is not None and figure in each.figures]
    return sum(interval.high - interval.low for interval in found)
