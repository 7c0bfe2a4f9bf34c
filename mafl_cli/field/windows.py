"""How a batch reaches the network: the one gradient interface the attack loop knows.

`Whole` puts every sample through in one piece: slices as a batch, or a volume as a batch of one. `Windows` covers it
with overlapping windows and blends their logits as MONAI's sliding_window_inference does; its gradient is the exact
one of the blended prediction, at the memory of one batch of windows:

1. without gradient, Z = sum of w z over the windows / sum of w; the loss and its slope with respect to Z;
2. every window that the slope reaches runs once more, now with gradient, and passes on its share w / sum of w.

Where little is to be changed, `Windows.focus` leaves out the windows that never see a change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mafl_cli.field.batches import fewer
from mafl_cli.field.boxes import Start, do_overlap, everything, hull, in_common, minus, on_last_axes, shifted, then
from mafl_cli.field.field import Focus, Losses, Reading, Say, Slopes
from mafl_cli.field.preprocess import Preprocessing
from mafl_cli.field.resample import Box, Grids, Resample
from mafl_cli.field.tiling import Tiling
from mafl_cli.network import chance
from mafl_cli.network.prediction import Network, Patch, Prediction, drawn
from mafl_cli.network.reasons import REFUSALS

Work = Callable[[Sequence[Start], Tensor, Prediction], None]


class Windows:
    """Overlapping windows with blended logits, over whole scans or slices of one size.

    grids: native grid and the network's. batch: how many windows go through the network together.
    """

    def __init__(
        self,
        segmenter: Network,
        preprocessing: Preprocessing,
        tiling: Tiling,
        grids: Grids,
        *,
        batch: int = 1,
        say: Say = lambda line: None,
    ) -> None:
        self.segmenter = segmenter
        self.preprocessing = preprocessing
        self.tiling = tiling
        self.grids = grids
        self.padding = tiling.padding(grids.to_network.shape_out)
        padded = zip(grids.to_network.shape_out, self.padding, strict=True)
        self.shape = tuple(size + before + after for size, (before, after) in padded)
        self.starts = tiling.starts(self.shape)
        self.weights = tiling.weights(segmenter.device)
        self._batch = batch
        self._say = say
        self._all = _WindowsPart(self, everything(self.shape), self.starts, self.starts)

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient, all logits at once. x: (B, C, *spatial), native units."""
        return self._all.predict(x)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """One forward pass, and for each loss one more with a backward pass, of the windows that it depends on."""
        return self._all.slopes(x, losses)

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes, (B, *spatial), or (B, R, *spatial) for overlapping regions.

        Goes through the scan slab by slab along the first axis: the logits of one slab are in memory, not of the scan.
        """
        return self.read(x, partial(drawn, compact=True))

    def read(self, x: Tensor, reading: Reading) -> Tensor:
        """What a reading makes of the logits of each voxel, without gradient; slab by slab, as `labels`."""
        with torch.no_grad():
            return torch.cat(
                [torch.cat(list(self._slabs(one, reading)), dim=-len(self.shape)) for one in torch.split(x, 1)]
            )

    def focus(self, clean: Tensor, edit: Tensor) -> Focus:
        """The function around an edit, for a scan that stays clean everywhere else.

        Only voxels within a quarter of a window of the edit may change. Windows that do not see them keep their clean
        logits for good; those that overlap the others run once, here. Slices are not cut: each has an edit of its own.

        Args:
            clean: (B, C, *spatial), native units; B = 1 in 3-D. edit: bool (B, *spatial), not empty.
        """
        if len(self.shape) == 2:
            return Focus(self, everything(clean.shape[2:]), None)
        near = self.tiling.near(edit, self.grids.to_network.shape_out)
        seen, edited = self._all.touched(near.float())[0] > 0, self._sources(edit[0])
        moving = [start for start in self.starts if bool(seen[self.place(start)].any())]
        tapped = [start for start in moving if bool(edited[self.place(start)].any())]
        # One voxel more: between it and the last one that a window draws, native voxels take from both.
        box = tuple(
            slice(max(min(first) - 1, 0), min(max(first) + edge + 1, size))
            for first, edge, size in zip(zip(*moving, strict=True), self.tiling.roi, self.shape, strict=True)
        )
        with torch.no_grad():
            part = _WindowsPart(self, box, moving, tapped, clean)
        return Focus(part, part.box, ~near[on_last_axes(part.box)])

    def inputs(self, x: Tensor, edit: Tensor, most: int) -> Iterator[Tensor]:
        """Windows of one scan that draw some of its edit, those that draw most of it first: (1, C, *roi)."""
        with torch.no_grad():
            ready, sources = self.ready(x), self._sources(edit[0])
        voxels = [int(sources[self.place(start)].sum()) for start in self.starts]
        for index in sorted(range(len(voxels)), key=lambda window: -voxels[window])[:most]:
            if voxels[index]:
                yield ready[on_last_axes(self.place(self.starts[index]))]

    def ready(self, x: Tensor) -> Tensor:
        """A whole scan, (B, C, *spatial) native, as windows are cut from it: (B, C, *shape)."""
        return self._all.onto_box(self.preprocessing(x))

    def place(self, start: Start) -> Box:
        """Where the window that begins at `start` lies, on the padded grid."""
        return tuple(slice(first, first + edge) for first, edge in zip(start, self.tiling.roi, strict=True))

    def total(self, box: Box) -> Tensor:
        """What all windows together count at each voxel of a box: (*box)."""
        total = torch.zeros([part.stop - part.start for part in box], device=self.weights.device)
        for start in self.starts:
            here, mine = in_common(self.place(start), box)
            total[here] += self.weights[mine]
        return total

    def run(self, ready: Tensor, starts: Sequence[Start], work: Work, *, gradient: bool = False) -> None:
        """Windows of `ready`, (B, C, *box), through the network: `work` gets where they start, their input and answer.

        A batch holds all B rows of its first window, then those of the next. When the memory is short, fewer go
        together from then on and the batch is done again; so `work` must do nothing before it can fail no more.

        Raises: ModelError when not even one window fits, or the network refuses.
        """
        done = 0
        while done < len(starts):
            group = starts[done : done + self._batch]
            try:
                with torch.set_grad_enabled(gradient):
                    leaf = torch.cat([ready[on_last_axes(self.place(start))] for start in group]).requires_grad_(
                        gradient
                    )
                    chance.at(group[0])
                    work(group, leaf, self.segmenter(leaf))
            except REFUSALS as exc:
                self._batch = fewer(self._batch, exc, self._say, self.segmenter.name, "window")
            else:
                done += len(group)

    def _sources(self, edit: Tensor) -> Tensor:
        """Where the logits of an edit, bool (*spatial), come from: bool (*shape)."""
        zeros = torch.zeros(self.grids.from_network.shape_in, device=edit.device, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.grids.from_network(zeros), zeros, edit.float())
        return F.pad(found, [amount for pad in reversed(self.padding) for amount in pad]) > 0

    def _slabs(self, x: Tensor, reading: Reading) -> Iterator[Tensor]:
        """What is read of one scan (1, C, *spatial), a few planes of the first axis after the other."""
        ready, dims = self.ready(x), len(self.shape)
        table, before = self.grids.from_network.tables[0], self.padding[0][0]
        # The sum over the windows so far, of the planes from `first` on; native planes before `native` are done.
        blended, first, native = torch.zeros(0), 0, 0
        levels = sorted({start[0] for start in self.starts})
        for level, following in zip(levels, [*levels[1:], self.shape[0]], strict=True):
            planes = level + self.tiling.roi[0] - first
            if level != levels[0]:
                blended = F.pad(blended, [0] * (2 * dims - 1) + [planes - blended.shape[-dims]])

            def add(group: Sequence[Start], _: Tensor, answer: Prediction, first: int = first) -> None:
                nonlocal blended
                logits = answer.logits * self.weights
                if blended.ndim == 1:
                    blended = logits.new_zeros(*logits.shape[1:-dims], self.tiling.roi[0], *self.shape[1:])
                for start, one in zip(group, logits, strict=True):
                    blended[on_last_axes(self.place((start[0] - first, *start[1:])))] += one

            self.run(ready, [start for start in self.starts if start[0] == level], add)
            # No window that is still to come touches the planes before `following`.
            final = int((table.high + before < following).sum())
            # Native planes may be larger: as many at once as have no more voxels than what is blended.
            most = max(1, planes * math.prod(self.shape[1:]) // math.prod(self.grids.from_network.shape_out[1:]))
            for begin in range(native, final, most):
                yield reading(self._planes(blended, first, slice(begin, min(begin + most, final))))
            native = final
            kept = min(following, int(table.low[native]) + before) if native < len(table.low) else following
            blended, first = blended[on_last_axes((slice(kept - first, None), *everything(self.shape[1:])))], kept

    def _planes(self, blended: Tensor, first: int, part: slice) -> Tensor:
        """Logits (1, K, planes, *) of native planes, from the sum over the windows, which begins at plane `first`."""
        table, before = self.grids.from_network.tables[0], self.padding[0][0]
        source = table.needs(part)
        at = slice(source.start + before, source.stop + before)
        sizes = zip(self.padding[1:], self.grids.to_network.shape_out[1:], strict=True)
        inner = on_last_axes([slice(pad, pad + size) for (pad, _), size in sizes])
        total = self.total((at, *everything(self.shape[1:])))[inner]
        logits = (
            blended[on_last_axes((slice(at.start - first, at.stop - first), *everything(self.shape[1:])))][inner]
            / total
        )
        return Resample((table.cut(part, source), *self.grids.from_network.axes[1:]))(logits).unsqueeze(0)


class _WindowsPart:
    """The windows that matter for a box of the scan, as a function of the native voxels in it.

    Args:
        box: on the padded grid. moving: the windows that run. tapped: those whose features count.
        clean: the scan, (1, C, *spatial), whose other windows keep what they say of it; None where there are none.

    box (attribute): the same in native voxels.
    """

    def __init__(
        self, whole: Windows, box: Box, moving: Sequence[Start], tapped: Sequence[Start], clean: Tensor | None = None
    ) -> None:
        self._whole = whole
        # On the network's grid: the voxels in the box, and the zeros around them.
        inner, self._inside, self._pad = list[slice](), list[slice](), list[int]()
        for part, (before, _), size in zip(box, whole.padding, whole.grids.to_network.shape_out, strict=True):
            low, high = max(part.start, before), min(part.stop, before + size)
            inner.append(slice(low - before, high - before))
            self._inside.append(slice(low - part.start, high - part.start))
            self._pad = [low - part.start, part.stop - high, *self._pad]
        # On the native grid: the voxels whose logits they suffice for, and with these what they are made of. A coarser
        # grid leaves out some voxels between those it is made of, and at the ends; their logits are drawn like others.
        self.box = whole.grids.from_network.within(tuple(inner))
        given = hull(self.box, whole.grids.to_network.needs(tuple(inner)))
        self._there = whole.grids.to_network.cut(tuple(inner), given)
        self._preprocessing = whole.preprocessing.cut(given)
        self._back = whole.grids.from_network.cut(self.box, tuple(inner))
        self._own = tuple(shifted(self.box, [part.start for part in given]))
        self._around = None if clean is None or self.box == given else clean[on_last_axes(given)]
        corner = tuple(part.start for part in box)
        self._moving = [minus(start, corner) for start in moving]
        self._tapped = [minus(start, corner) for start in tapped]
        self._total = whole.total(box)
        self._constant: Tensor | float = 0.0 if clean is None else self._others(clean, box, moving)

    def onto_box(self, native: Tensor) -> Tensor:
        """The scan in model units, (B, C, *native box), as windows get it: resampled, with the zeros around it."""
        return self._with_zeros(self._there(native))

    def seen(self, native: Tensor) -> Tensor:
        """A map (..., *native box) on the grid of the windows."""
        return self._with_zeros(self._there.seen(native))

    def touched(self, native: Tensor) -> Tensor:
        """Where windows depend on voxels that are above 0 in a map (..., *native box), as numbers above 0."""
        return self._with_zeros(self._there.touched(native))

    def _with_zeros(self, inner: Tensor) -> Tensor:
        return F.pad(inner, self._pad) if any(self._pad) else inner

    def predict(self, x: Tensor) -> Prediction:
        """Without gradient. x: (B, C, *native box)."""
        with torch.no_grad():
            blended, patches = self._first_pass(self._ready(x))
            return Prediction(self._drawn(blended), patches)

    def slopes(self, x: Tensor, losses: Losses) -> Slopes:
        """The exact gradient of losses of the blended prediction, window by window. x: (B, C, *native box)."""
        x = x.detach().requires_grad_()
        ready = self._ready(x)
        with torch.no_grad():
            blended, patches = self._first_pass(ready.detach())
        blended.requires_grad_()
        for patch in patches:
            patch.features.requires_grad_()
        prediction = Prediction(self._drawn(blended), patches)
        values = list(losses(prediction))
        wanted = [blended, *(patch.features for patch in patches), prediction.logits]
        slopes = []
        for value in values:
            pulls = torch.autograd.grad(value.sum(), wanted, retain_graph=value is not values[-1], allow_unused=True)
            slopes.append(
                [torch.zeros_like(leaf) if pull is None else pull for leaf, pull in zip(wanted, pulls, strict=True)]
            )
        first = slopes[0][-1]
        # What the losses kept must be gone before the windows need the memory.
        values, prediction = [each.detach() for each in values], prediction.detach()
        del value
        of_ready = [self._second_pass(ready.detach(), *pulls[:-1]) for pulls in slopes]
        gradients = [torch.autograd.grad(ready, x, pull, retain_graph=True)[0] for pull in of_ready]
        return Slopes(prediction, values, gradients, first)

    def _ready(self, x: Tensor) -> Tensor:
        """What the windows are cut from: (B, C, *box)."""
        if self._around is not None:
            # The rim that resampling needs and whose logits would need more: it stays clean.
            around = self._around.clone()
            around[on_last_axes(self._own)] = x
            x = around
        return self.onto_box(self._preprocessing(x))

    def _drawn(self, blended: Tensor) -> Tensor:
        """Blended logits of the box -> native logits."""
        return self._back(blended[on_last_axes(self._inside)])

    def _first_pass(self, ready: Tensor) -> tuple[Tensor, tuple[Patch, ...]]:
        """Blended logits, (B, K, *box), and the features of the tapped windows."""
        rows = len(ready)
        sums: list[Tensor] = []
        patches: list[Patch] = []

        def add(group: Sequence[Start], _: Tensor, answer: Prediction) -> None:
            logits = answer.logits * self._whole.weights
            mine = [slice(index * rows, (index + 1) * rows) for index in range(len(group))]
            places = [self._whole.place(start) for start in group]
            found = [
                patch
                for start, part, place in zip(group, mine, places, strict=True)
                if start in self._tapped
                for patch in self._patches(answer, part, place)
            ]
            if not sums:
                size = self._total.shape
                sums.append(logits.new_zeros(rows, *logits.shape[1 : -len(size)], *size) + self._constant)
            for part, place in zip(mine, places, strict=True):
                sums[0][on_last_axes(place)] += logits[part]
            patches.extend(found)

        self._whole.run(ready, self._moving, add)
        return sums[0] / self._total, tuple(patches)

    def _patches(self, answer: Prediction, rows: slice, place: Box) -> Iterator[Patch]:
        def see(native: Tensor) -> Tensor:
            if self._around is not None:
                rim = torch.zeros(*native.shape[: -len(place)], *self._around.shape[-len(place) :]).to(native)
                rim[on_last_axes(self._own)] = native
                native = rim
            return self.seen(native)[on_last_axes(place)]

        for patch in answer.features:
            yield Patch(patch.features[rows].clone(), patch.weight, then(see, patch.see))

    def _second_pass(self, ready: Tensor, logits: Tensor, *features: Tensor) -> Tensor:
        """The gradient with respect to `ready` of a loss with these slopes in blended logits and features.

        A loss at a time, though several could share the forward pass: they would have to keep it all until the last.
        """
        rows, place = len(ready), self._whole.place
        gradient = torch.zeros_like(ready)
        taps = len(features) // max(len(self._tapped), 1)

        def of_taps(at: Start) -> Sequence[Tensor]:
            first = self._tapped.index(at) * taps if at in self._tapped else len(features)
            return features[first : first + taps]

        felt = [
            torch.stack([part.any() for part in (logits[on_last_axes(place(at))], *of_taps(at))]).any()
            for at in self._moving
        ]
        reached = [at for at, some in zip(self._moving, torch.stack(felt).tolist(), strict=True) if some]

        def back(group: Sequence[Start], leaf: Tensor, answer: Prediction) -> None:
            share = [logits[on_last_axes(place(at))] * self._whole.weights / self._total[place(at)] for at in group]
            outputs, pulls = [answer.logits], [torch.cat(share)]
            for tap, patch in enumerate(answer.features):
                none = torch.zeros_like(patch.features[:rows])
                outputs.append(patch.features)
                pulls.append(torch.cat([(of_taps(at) or [none] * (tap + 1))[tap] for at in group]))
            (mine,) = torch.autograd.grad(outputs, leaf, pulls)
            for index, at in enumerate(group):
                gradient[on_last_axes(place(at))] += mine[index * rows : (index + 1) * rows]

        self._whole.run(ready, reached, back, gradient=True)
        return gradient

    def _others(self, clean: Tensor, box: Box, moving: Sequence[Start]) -> Tensor | float:
        """What windows that never run again add to the box, from the clean scan: (1, K, *box); 0 if there are none."""
        whole, known = self._whole, set(moving)
        others = [start for start in whole.starts if start not in known and do_overlap(whole.place(start), box)]
        sums: list[Tensor] = []

        def add(group: Sequence[Start], _: Tensor, answer: Prediction) -> None:
            logits = answer.logits * whole.weights
            if not sums:
                sums.append(logits.new_zeros(1, *logits.shape[1 : -len(box)], *self._total.shape))
            for one, start in zip(logits, group, strict=True):
                here, mine = in_common(whole.place(start), box)
                sums[0][on_last_axes(here)] += one[on_last_axes(mine)]

        if others:
            whole.run(whole.ready(clean), others, add)
        return sums[0] if sums else 0.0
