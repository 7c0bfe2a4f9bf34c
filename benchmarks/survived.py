"""The section on what is left of an attack: transfer, survival and detection, from what `survival.py` wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from results import Row, geometric, mean_of, number, table


def survival(document: dict[str, Any]) -> str:
    """The section on transfer, survival and detection, from what `survival.py` wrote."""
    rows: list[Row] = document["rows"]
    variants, cases = (list(dict.fromkeys(row[key] for row in rows)) for key in ("variant", "case"))
    by = {(row["case"], row["variant"]): row for row in rows}
    baseline = variants[0]

    def mean(variant: str, pick: Callable[[Row], float | None]) -> float | None:
        values = [pick(by[case, variant]) for case in cases if (case, variant) in by]
        return mean_of([value for value in values if value is not None])

    def ratio(variant: str, key: str) -> float | None:
        whole = [case for case in cases if (case, variant) in by and (case, baseline) in by]
        return geometric([by[case, variant][key] / by[case, baseline][key] for case in whole])

    def left(variant: str, key: str, name: str) -> float | None:
        return mean(variant, lambda row: next(e for e in row["survival"] if e["transform"] == name)[key]["value"])

    names = [entry["transform"] for entry in rows[0]["survival"]]

    def over_all(variant: str) -> float:
        return sum(left(variant, "hit_rate", name) or 0.0 for name in names) / len(names)

    size = [
        [
            variant,
            number(mean(variant, lambda row: row["hit_rate"]), 4),
            f"{sum(by[case, variant]['goal_reached'] for case in cases)} of {len(cases)}",
            number(ratio(variant, "l2"), 2),
            number(mean(variant, lambda row: row["psnr_db"]), 2),
            number(mean(variant, lambda row: row["low_frequency_share"]), 3),
            number(over_all(variant), 3),
            number(mean(variant, lambda row: row["auc"]), 3),
        ]
        for variant in variants
    ]
    kept = [
        [
            name,
            *(number(left(variant, "hit_rate", name), 3) for variant in variants),
            number(left(variants[1], "restored", name), 3),
            number(left(baseline, "clean_dice", name), 3),
        ]
        for name in names
    ]
    asked = [case for case in cases if by[case, baseline]["transfer"]]
    moved = [
        [
            f"{case} → {by[case, baseline]['transfer'][0]['model']}",
            *(number(by[case, variant]["transfer"][0]["adversarial"]["hit_rate"]["value"], 3) for variant in variants),
        ]
        for case in asked
    ]
    return "\n\n".join(
        [
            "## What is left of an attack",
            f"Made by `python benchmarks/survival.py --data DATA --steps {document['steps']}` (torch "
            f"{document['torch']}; {len(cases)} pairs: {', '.join(cases)}) and `mafl evaluate`. Each pair is attacked "
            "without the low-frequency term, with the default penalty, with a stronger one, and under the hard one.",
            table(
                ("low frequency", "hit rate", "at the goal", "L2, × off", "PSNR dB", "low-frequency share",
                 "hit rate after transforms", "AUC of the detector"),
                size,
            ),
            _worth(
                variants, over_all, lambda variant: left(variant, "hit_rate", "blur:1") or 0.0,
                lambda variant: ratio(variant, "l2"),
            ),
            "Hit rate after a transform, mean over the pairs. Restored: share of the attacked voxels that have their "
            f"class back ({variants[1]}). Dice of clean scans: with the prediction before the transform.",
            table(("transform", *variants, "restored", "Dice of clean scans"), kept),
            "Hit rate in a model that was not attacked: of the voxels where its own clean prediction is not the "
            "target.",
            table(("pair → other model", *variants), moved),
        ]
    ) + "\n"  # fmt: skip


def _worth(
    variants: Sequence[str],
    left: Callable[[str], float],
    blurred: Callable[[str], float],
    length: Callable[[str], float | None],
) -> str:
    """Two sentences on what the low-frequency constraint buys or costs."""
    off, default, _, hard = variants
    more = "more" if left(default) > left(off) else "less"
    first = (
        f"The default penalty costs × {number(length(default), 2)} in L2 and leaves {more} of the attack after the "
        f"transforms (mean hit rate {left(default):.3f} against {left(off):.3f} without it)."
    )
    second = f"Allowing no low frequencies at all costs × {number(length(hard), 2)} in L2, and {left(hard):.3f} is left"
    if blurred(hard) < blurred(off):
        second += f": smoothing takes it away first (after blur:1 {blurred(hard):.3f} against {blurred(off):.3f})"
    return f"{first} {second}."
