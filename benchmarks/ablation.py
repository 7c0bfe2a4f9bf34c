"""What each ingredient of the attack buys on the sample scan: every row switches one of them off.

    python benchmarks/ablation.py [--steps 150]

Lengths are model units over the whole scan; L2 and Linf are also given relative to the full method, measured in the
same run. LF share is the part of the perturbation's energy in its Haar low-pass band.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from mafl_cli.config import AttackConfig
from mafl_cli.pipeline import AttackRequest, run_attack

SAMPLES = Path(__file__).resolve().parent.parent / "sample_data"
ROWS: dict[str, dict[str, float]] = {
    "all": {},
    "no feature term": {"feature_weight": 0},
    "no low-frequency term": {"low_frequency_weight": 0},
    "no momentum": {"momentum": 0},
    "no whitening": {"spread": 1e6},
    "no margin (kappa 0)": {"kappa": 0},
    "no scale search": {"scale_search": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    for target in ("target_swap", "target_hole"):
        print(
            f"\n{target}, {steps} steps\n{'':24}{'IoU':>8}{'L2':>9}{'':>7}{'Linf':>8}{'':>7}{'PSNR':>8}{'LF share':>10}"
        )
        full: dict[str, float] = {}
        for name, changes in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                done = run_attack(
                    AttackRequest(
                        image=SAMPLES / "brain_t1.nii.gz",
                        target=SAMPLES / f"{target}.nii.gz",
                        out=Path(folder) / "out",
                        device="cpu",
                        config=AttackConfig(steps=steps, **changes),  # type: ignore[arg-type]
                    )
                )
            metrics = done["cases"][0]["metrics"]
            size = metrics["size"]
            lengths = {key: size[key]["model"] for key in ("l2", "linf")}
            full = full or lengths
            print(
                f"{name:24}{metrics['post_write']['target_iou']['value']:8.4f}"
                f"{lengths['l2']:9.3f} x{lengths['l2'] / full['l2']:5.2f}"
                f"{lengths['linf']:8.3f} x{lengths['linf'] / full['linf']:5.2f}"
                f"{size['psnr_db']['value']:8.2f}{size['low_frequency_share']['value']:10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
