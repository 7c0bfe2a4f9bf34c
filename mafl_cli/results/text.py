"""A report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mafl_cli.codes import Outcome, Reason


def format_dry_run(shown: Mapping[str, Any]) -> str:
    """A table of the voxels of each class before and after, and what would be attacked."""
    samples, voxels = shown["samples"], shown["target"]["voxels"]
    lines = [
        f"{shown['case_id']}: nothing was attacked.",
        f"  {'class':<20} {'clean prediction':>18} {'target':>12} {'change':>12}",
    ]
    for name, before in shown["clean_voxels"].items():
        lines.append(f"  {name[:20]:<20} {before:>18} {voxels[name]:>12} {voxels[name] - before:>+12}")
    what = f"{samples['attacked']} of {samples['total']} slices" if samples["kind"] == "slices" else "the volume"
    lines.append(f"  {shown['changed_voxels']} voxels must change, in {what}.")
    allowed = shown["bounds"]["allowed_voxels"]
    if allowed is not None:
        lines.append(f"  {allowed} voxels may be altered.")
    return "\n".join(lines)


def format_summary(report: Mapping[str, Any]) -> str:
    """The few lines a person wants to see, one block per case."""
    blocks = [_format_case(case) for case in report["cases"]]
    return "\n\n".join(blocks)


def format_size(size: Mapping[str, Any]) -> list[str]:
    return [
        f"  change        L2 {size['l2']['native']:.5g}, Linf {size['linf']['native']:.5g} native units"
        f" (model units {size['l2']['model']:.4g}, {size['linf']['model']:.4g})",
        f"  PSNR          {number(size['psnr_db'], '.2f', ' dB')}   data range {size['data_range']['value']:.6g}"
        f" ({size['data_range']['rule']})",
        f"  SSIM          {number(size['ssim']['mean'], '.5f')}   worst slice {number(size['ssim']['worst'], '.5f')}",
    ]


def _format_case(case: Mapping[str, Any]) -> str:
    attack, post, size = case["attack"], case["metrics"]["post_write"], case["metrics"]["size"]
    clean = case["metrics"]["clean"]
    samples = attack["samples"]
    unit = "slices" if samples["kind"] == "slices" else "volume"
    counts = f"{samples['reached']} of {samples['attacked']} attacked {unit}" if unit == "slices" else "the volume"
    lines = [
        f"{case['case_id']}: {Outcome(attack['outcome']).sentence}",
        f"  target IoU    {number(post['target_iou'])}   (clean scan {number(clean['target_iou'])})",
        f"  hit rate      {number(post['hit_rate'])}   of {post['changed_voxels']} voxels that must change;"
        f" collateral {post['collateral']['count']} voxels",
        f"  goal reached  {'yes' if attack['goal_reached'] else 'no'}" + (f"   ({counts})" if unit == "slices" else ""),
        *format_size(size),
        *_format_stored_grid(case),
        f"  measured on   {case['files'][0]['name'].split('/')[0]}, read again ({case['quantisation'][0]['dtype']})",
    ]
    return "\n".join(lines)


def _format_stored_grid(case: Mapping[str, Any]) -> list[str]:
    """What the integers of the file did to the attack; nothing where it holds floats."""
    channels = [each for each in case["quantisation"] if each["step_native"] is not None]
    if not channels:
        return []
    steps = ", ".join(f"{each['step_native']:.4g}" for each in channels)
    changed = max(each["fraction_changed"] for each in channels)
    clipped = max(each["fraction_clipped"] for each in channels)
    memory, file = (case["metrics"][key]["target_iou"] for key in ("in_memory", "post_write"))
    return [
        f"  stored grid   step {steps} native; {changed:.2%} of the voxels changed, {clipped:.2%} of these clipped;"
        f" IoU in memory {number(memory)}, in the file {number(file)}"
    ]


def number(entry: Mapping[str, Any], form: str = ".4f", unit: str = "") -> str:
    if entry["value"] is None:
        return f"undefined ({Reason(entry['reason']).sentence})"
    return f"{entry['value']:{form}}{unit}"
