"""Can a network hide how easily it is fooled? Ways to do so, and honest networks that look like them.

    python benchmarks/planted.py [--data DIR] [--steps 50] [--kinds GLOB...] [--out docs]

Each way is wrapped around three networks whose own smallest change is measured first: the tissue network that comes
with mafl (2-D, softmax), a tumour network (2-D, sigmoid; needs --data), and a small one made on the spot that sees a
volume through windows (3-D). What is found counts as broken when the unchanged, wrapped network draws the target.
Writes planted.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import load_case
from torch import Tensor, nn

import mafl_cli as mafl
from mafl_cli.codes import Belief
from mafl_cli.errors import MaflError

MOST = 1.15
"""L2 over that of the network inside, up to which a way to hide counts as broken for good."""

SAME = 3
"""Voxels drawn otherwise than by the network inside, up to which the function on the scan counts as its own."""

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A network, what it sees (B, C, *spatial) and is to draw, and what `mafl.attack` must know."""

    name: str
    network: nn.Module
    image: Tensor
    target: Tensor
    options: dict[str, Any]


class Wrapped(nn.Module):
    """A network behind a front end, on a scan scaled to [0, 1], and before a back end; or with something around it."""

    def __init__(
        self,
        problem: Problem,
        front: Map | None = None,
        back: Map | None = None,
        around: Callable[[Map, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.front, self.back, self.around = problem.network, front, back, around
        self.low, self.range = float(problem.image.min()), float(problem.image.max() - problem.image.min())

    def forward(self, x: Tensor) -> Tensor:
        if self.front is not None:
            x = self.front((x - self.low) / self.range) * self.range + self.low
        logits: Tensor = self.network(x) if self.around is None else self.around(self.network, x)
        return logits if self.back is None else self.back(logits)


# --- ways to hide -------------------------------------------------------------------------------------------------


def rounded(u: Tensor, levels: float) -> Tensor:
    return torch.round(u * levels) / levels


def rest(u: Tensor) -> Tensor:
    """What fine rounding takes away: next to nothing, with a slope of 1."""
    return u - rounded(u, 65536)


def elsewhere(u: Tensor) -> Tensor:
    return torch.roll(u, (7, 5), (-2, -1))


def tiles(u: Tensor) -> Tensor:
    rows, columns = torch.arange(u.shape[-2]) // 4, torch.arange(u.shape[-1]) // 4
    return ((rows[:, None] + columns) % 2).to(u)


def stairs(u: Tensor, steep: float) -> Tensor:
    whole = torch.floor(16 * u)
    return (whole + torch.sigmoid(steep * (16 * u - whole - 0.5))) / 16


def hashed(u: Tensor) -> Tensor:
    noise = torch.sin(12.9898e6 * u) * 43758.5453
    return u + 1e-3 * (noise - torch.floor(noise) - 0.5)


def levels(u: Tensor) -> Tensor:
    return torch.stack([(u > (level + 0.5) / 32).to(u) for level in range(32)]).sum(dim=0) / 32


def coarse(u: Tensor) -> Tensor:
    """Fine detail is rounded, as JPEG does."""
    pool, mode = (F.avg_pool2d, "bilinear") if u.ndim == 4 else (F.avg_pool3d, "trilinear")
    smooth = F.interpolate(pool(u, 2, ceil_mode=True), size=u.shape[2:], mode=mode)
    return smooth + rounded(u - smooth, 64)


def emptied(u: Tensor) -> Tensor:
    """Another function for scans that look empty: a random image does not, a scan does."""
    return u * 0.999 if bool((u < 0.02).float().mean() > 0.02) else torch.roll(u, 3, -1)


def too_bright(u: Tensor) -> Tensor:
    return u / 255 if float(u.detach().max()) > 1.5 else u


def settled(u: Tensor) -> Tensor:
    """Repeats until nothing changes: the number of rounds is that of the scan."""
    while float(u.detach().max()) > 1.0:
        u = u / float(u.detach().max())
    return u


def one_hot(z: Tensor) -> Tensor:
    return torch.where(z > 0, 1.0, -1.0) if z.shape[1] == 1 else (z >= z.amax(dim=1, keepdim=True)).to(z)


def noisy(u: Tensor) -> Tensor:
    return u + 0.01 * torch.randn_like(u)


def noisy_scans(u: Tensor) -> Tensor:
    """Noise for scans alone: a random image has no dark voxels."""
    return noisy(u) if bool((u < 0.02).float().mean() > 0.02) else u


def shifted(network: Map, x: Tensor) -> Tensor:
    """Moves the scan by chance, and the answer back."""
    by = int(torch.randint(-3, 4, (1,)))
    return torch.roll(network(torch.roll(x, by, -1)), -by, -1)


def waves(z: Tensor) -> Tensor:
    return z + 0.05 * torch.sin(1e4 * z)


FRONTS: dict[str, Map] = {
    "8 levels, and a leak": lambda u: rounded(u, 8) + 0.02 * u,
    "8 levels, and a decoy": lambda u: rounded(u, 8) + 0.02 * elsewhere(rest(u)),
    "64 levels, and a leak": lambda u: rounded(u, 64) + 0.001 * u,
    "counted levels, and a leak": lambda u: levels(u) + 0.001 * u,
    "whole numbers, and a leak": lambda u: (u * 64).to(torch.int32).to(u) / 64 + 0.001 * u,
    "detail rounded, and a leak": lambda u: coarse(u) + 0.001 * u,
    "waves finer than a step": lambda u: u + 5e-4 * torch.sin(4e4 * u),
    "waves that are steep": lambda u: u + 5e-4 * torch.sin(4e5 * u),
    "a sawtooth": lambda u: u + 5e-4 * torch.remainder(1e4 * u, 1.0),
    "hash noise": hashed,
    "wrong sign": lambda u: u - 2 * rest(u),
    "wrong sign in tiles": lambda u: u - 2 * rest(u) * tiles(u),
    "no slope in tiles": lambda u: u - rest(u) * tiles(u),
    "a slope of elsewhere": lambda u: u - rest(u) + elsewhere(rest(u)),
    "a slope too small": lambda u: u - 0.99 * rest(u),
    "a slope too large": lambda u: u + 20 * rest(u),
    "steep stairs": lambda u: stairs(u, 200.0),
    "detached, and a decoy": lambda u: (u - 0.1 * elsewhere(u)).detach() + 0.1 * elsewhere(u),
    "other for empty scans": emptied,
    "other for bright scans": too_bright,
    "a loop until nothing changes": settled,
    "noise": noisy,
    "noise on scans alone": noisy_scans,
    "dropout that was left on": lambda u: F.dropout(u, 0.01, training=True),
    "noise that flips nothing": lambda u: u + 1e-6 * torch.randn_like(u),
}
BACKS: dict[str, Map] = {
    "saturated": lambda z: torch.tanh(30 * z),
    "clamped": lambda z: z.clamp(-0.1, 0.1),
    "one class alone, and a leak": lambda z: one_hot(z) + 1e-3 * torch.tanh(z / 10),
    "one class alone, and a decoy": lambda z: one_hot(z) + 1e-3 * torch.tanh(elsewhere(z) / 10),
    "rounded logits, and a leak": lambda z: torch.round(4 * z) / 4 + 1e-3 * z,
    "waves in the logits": waves,
    "cubed logits": lambda z: z**3,
    "squared logits with their sign": lambda z: z * z.abs(),
    "noise in the logits": lambda z: z + 0.1 * z.std() * torch.randn_like(z),
}
AROUND: dict[str, Callable[[Map, Tensor], Tensor]] = {"a random shift": shifted}


# --- honest ones --------------------------------------------------------------------------------------------------


def blurred(u: Tensor, side: int = 3) -> Tensor:
    pool = F.avg_pool2d if u.ndim == 4 else F.avg_pool3d
    return pool(F.pad(u, (side // 2,) * 2 * (u.ndim - 2), mode="replicate"), side, 1)


def bilateral(u: Tensor) -> Tensor:
    total, weights = u, torch.ones_like(u)
    for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        other = torch.roll(u, shift, (-2, -1))
        weight = torch.exp(-((u - other) ** 2) / 0.02)
        total, weights = total + weight * other, weights + weight
    return total / weights


def quantised(u: Tensor) -> Tensor:
    """Trained to be rounded later: straight-through."""
    return u + (rounded(u, 255) - u).detach()


def attentive(z: Tensor) -> Tensor:
    gate = torch.sigmoid(z.mean(dim=tuple(range(2, z.ndim)), keepdim=True))
    return z * (0.5 + gate)


HONEST_FRONTS: dict[str, Map] = {
    "as it is": lambda u: u,
    "blur": blurred,
    "wide blur": lambda u: blurred(u, 5),
    "bilateral filter": bilateral,
    "clipped": lambda u: u.clamp(-1, 2),
    "a window": lambda u: u.clamp(0.02, 0.95),
    "scaled by its own mean": lambda u: u * (u.mean(dim=tuple(range(1, u.ndim)), keepdim=True) + 1) / (u.mean() + 1),
    "quantisation-aware": quantised,
    "bfloat16": lambda u: u.to(torch.bfloat16).to(torch.float32),
    "gamma": lambda u: u.clamp_min(1e-4) ** 0.9,
    "a slow wave": lambda u: u + 0.05 * torch.sin(6 * u),
    "dropout that is off": lambda u: F.dropout(u, 0.5, training=False),
    "unsharp": lambda u: u + 0.3 * (u - blurred(u)),
}
HONEST_BACKS: dict[str, Map] = {
    "large logits": lambda z: 1e4 * z,
    "small logits": lambda z: 1e-6 * z,
    "warm": lambda z: z / 7,
    "an attention gate": attentive,
    "a soft sign": lambda z: z / (1 + 0.1 * z.abs()),
    "smoothed logits": lambda z: 0.5 * z + 0.5 * blurred(z),
    "probabilities": lambda z: torch.sigmoid(z) if z.shape[1] == 1 else torch.softmax(z, dim=1),
}


# --- the networks inside ------------------------------------------------------------------------------------------


class Lead(nn.Module):
    """Of two classes, the lead of the second: one logit."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits[:, 1:2] - logits[:, 0:1]


class Edges(nn.Module):
    """What is brighter than half after a blur, bent by a hidden layer: (B, 1, D, H, W) -> (B, 2, D, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Conv3d(1, 6, 3, padding=1, bias=False), nn.Conv3d(6, 2, 3, padding=1, bias=False)
        with torch.no_grad():
            for layer, size in ((self.first, 0.05), (self.last, 0.02)):
                layer.weight.copy_(size * torch.randn(layer.weight.shape, generator=generator))
            self.first.weight += 1 / 27
            self.last.weight[1] += 0.04
            self.last.weight[0] -= 0.04

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.gelu(2 * self.first(x)))
        return logits + torch.tensor([3.2, -3.2]).view(1, 2, 1, 1, 1)


def problems(data: Path | None) -> list[Problem]:
    """The networks, each with slices or a volume and a target."""
    names = {"sample:hole": "tissue, 2-D softmax"}
    if data is not None:
        names["flair2d_pat0001/slab12:shifted20"] = "tumour, 2-D sigmoid"
    found = []
    for case_name, name in names.items():
        case = load_case(case_name, data)
        network: nn.Module = case.segmenter.original.file.module
        if "sigmoid" in name:
            network = Lead(network)
        options = {"activation": "sigmoid"} if "sigmoid" in name else {}
        image = case.preprocessing(case.clean)[:2].detach()
        found.append(Problem(name, network.eval(), image, case.target[:2], options))
    grid = torch.linspace(-1, 1, 24)
    ball = torch.exp(-3 * (grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2))
    texture = torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(0))
    volume = (0.9 * ball + 0.1 * texture)[None, None]
    network = Edges().eval().requires_grad_(False)
    target = torch.roll(network(volume).argmax(dim=1), 3, -1)
    return [*found, Problem("a ball, 3-D windows", network, volume, target, {"roi": (16, 16, 16)})]


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one attack.

    word: broken, dear (broken, at more than `MOST` times the length), inconclusive, refused, or passed: the goal was
    missed and nothing says so. ratio: L2 over that of the network inside, NaN if refused. how: whose gradient,
    and what the checks found. apart: voxels of the clean scan that are drawn otherwise than by the network inside.
    """

    word: str
    ratio: float
    how: str
    apart: int


def outcome(problem: Problem, network: nn.Module, own: float, steps: int) -> Outcome:
    apart = int((_drawn(network, problem.image) != _drawn(problem.network, problem.image)).sum())
    try:
        found = mafl.attack(network, problem.image, problem.target, steps=steps, **problem.options)
    except MaflError as exc:
        return Outcome("refused", float("nan"), str(exc), apart)
    ratio = float(found.sizes.l2.square().sum().sqrt()) / own
    trust, reached = found.trust, bool(found.success.all())
    alarms = ", ".join(alarm.code.value for alarm in trust.searches[0].alarms) if trust.searches else ""
    how = f"{trust.found_by.replace('_', ' ')}{f' ({alarms})' if alarms else ''}"
    if reached:
        return Outcome("broken" if ratio <= MOST else "dear", ratio, how, apart)
    return Outcome("inconclusive" if trust.verdict is Belief.ALARM else "passed", ratio, how, apart)


def _drawn(network: nn.Module, image: Tensor) -> Tensor:
    """Classes in one pass: (B, *spatial) of padded sides, which networks with strides want."""
    sides = [side for edge in reversed(image.shape[2:]) for side in (0, -edge % 16)]
    with torch.no_grad():
        logits: Tensor = network(F.pad(image, sides, value=float(image.min())))
    return logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of development scans")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kinds", nargs="*", default=["*"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for problem in problems(arguments.data):
        plain = mafl.attack(problem.network, problem.image, problem.target, steps=arguments.steps, **problem.options)
        own = float(plain.sizes.l2.square().sum().sqrt())
        for honest, fronts, backs in ((False, FRONTS, BACKS), (True, HONEST_FRONTS, HONEST_BACKS)):
            arounds = {} if honest else AROUND
            for kind in (*fronts, *backs, *arounds):
                if not any(fnmatch(kind, pattern) for pattern in arguments.kinds):
                    continue
                wrapped = Wrapped(problem, fronts.get(kind), backs.get(kind), arounds.get(kind))
                found = outcome(problem, wrapped.eval(), own, arguments.steps)
                lines.append((problem.name, honest, kind, found))
                shown = f"{found.word} {found.ratio:.2f} {found.how}"
                print(f"{problem.name} | {'honest' if honest else 'hides'} | {kind} | {shown}", flush=True)
    if arguments.out is not None:
        data = "" if arguments.data is None else " --data DIR"
        command = f"python benchmarks/planted.py{data} --steps {arguments.steps}"
        (arguments.out / "planted.md").write_text(page(lines, command), encoding="utf-8")


def page(lines: list[tuple[str, bool, str, Outcome]], command: str) -> str:
    """The tables as Markdown."""
    hidden = [found for _, honest, _, found in lines if not honest]
    open_ones = [found for _, honest, _, found in lines if honest]
    counts = {word: sum(found.word == word for found in hidden) for word in WORDS}
    alarmed = sum("(" in found.how for found in open_ones)
    same = [found for found in hidden if found.apart <= SAME]
    broken = sum(found.word == "broken" for found in same)
    ratios = [found.ratio for found in same if found.word in ("broken", "dear")]
    worst = f", at {max(ratios):.2f} times its L2 or less" if ratios else ""
    names = list(dict.fromkeys(name for name, *_ in lines))
    text = [
        "# Networks that hide how easily they are fooled",
        "",
        f"Made by `{command}` (torch {torch.__version__}, one thread).",
        "",
        f"{len(hidden)} attacks on networks that hide their gradient, draw by other rules when they see a scan, or "
        f"answer by chance: {', '.join(f'{count} {word}' for word, count in counts.items())}. {len(open_ones)} attacks "
        f"on honest ones: {alarmed} with an alarm about the gradient.",
        "",
        f"In {len(same)} of the {len(hidden)} the network draws the clean scan as the one inside does, but for {SAME} "
        f"voxels at most: {broken} are broken{worst}. The others are other functions, which may need more.",
        "",
        f"*broken*: the unchanged network draws the target, with at most {MOST} times the L2 that the network inside "
        "takes; "
        "*dear*: with more. *inconclusive*: missed, and every gate says so. *refused*: exit code 4, with the reason. "
        "*passed*: missed, and nothing says so: that must not be. In brackets: what the checks found "
        "([evaluate.md](evaluate.md)). The number is the L2 over that of the network inside; honest filters make it "
        "larger or smaller by right, and an honest network is inconclusive where so few steps miss the goal though "
        "nothing limits the change.",
    ]
    for honest, title in ((False, "Ways to hide"), (True, "Honest networks")):
        text += ["", f"## {title}", "", "| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
        kinds = list(dict.fromkeys(kind for _, is_honest, kind, _ in lines if is_honest == honest))
        found = {(name, kind): each for name, is_honest, kind, each in lines if is_honest == honest}
        for kind in kinds:
            cells = [found.get((name, kind)) for name in names]
            text.append(f"| {kind} | " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(text) + "\n"


WORDS = ("broken", "dear", "inconclusive", "refused", "passed")


def _cell(found: Outcome | None) -> str:
    if found is None:
        return ""
    if found.word == "refused":
        return "refused"
    return f"{found.word}, {found.ratio:.2f}, {found.how}"


if __name__ == "__main__":
    main()
