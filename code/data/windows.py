"""Stage A's windows of unlabelled EEG, read from mapped files or gathered on a GPU that holds the whole corpus.

Shapes: N windows, B windows of a batch, C electrodes and T samples of a span, S spans.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import signals
from data.signals import Span, fit_channels, fit_length, read_manifest, read_span, spans_of
from runtime import draws
from runtime.errors import UserError

SMALLEST = 1e-3  # median size of samples, scaled; of standardised EEG it is about 1, of volts 1e-5


class EEGWindows:
    """Unlabelled EEG: every `.npy` under a folder, (C, T) or (n, C, T), memory-mapped (spec 1.4, 3.1).

    An epoch holds floor(T / n_times) windows of a longer recording, each cropped anew at random, and one
    window of any other, interpolated to n_times. A part is held out: whole recordings (files) where there
    are five or more, otherwise the end of each. `info` is the folder's manifest.json ("sfreq", "ch_names",
    "band", "excludes_test"; None where unknown).

    Raises:
        UserError: no such folder, no `.npy` in it, or an array that is not finite, varying EEG.
    """

    def __init__(self, folder, n_chans: int = 128, n_times: int = 512, scale: float = 1.0, seed=2022, held_out=0.1):
        self.folder, self.n_chans, self.n_times, self.scale, self.seed = Path(folder), n_chans, n_times, scale, seed
        found = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() == ".npy")
        files = [path for path in found if path.is_file()]
        if other := sorted({*found} - {*files}):
            print(f"note: {len(other)} .npy are no files (folders, pipes, broken links) and left out, first {other[0]}")
        if not files:
            missing = "no .npy file in this folder or below it" if self.folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {missing}; it should hold recordings as .npy files (see datasets/README.md)")
        for cached in (signals.mapped, signals.layout):
            cached.cache_clear()  # files of the same name may have been rewritten since
        self.info = dict.fromkeys(("sfreq", "ch_names", "band", "excludes_test"))
        self.info |= read_manifest(self.folder / "manifest.json")
        self.n_recordings = len(files)
        recordings, sizes = zip(*map(spans_of, files), strict=True)
        self._check_corpus(files, np.array(sizes), [signals.layout(path)[3][-2:] for path in files])
        self.train, self.held_out = self._hold_out(list(recordings), held_out)
        self.last = np.cumsum([self._n_windows(span) for span in self.train])

    def _check_corpus(self, files: list[Path], sizes: np.ndarray, shapes: list[tuple[int, int]]) -> None:
        """Refuse a unit that is no EEG's, and names of other channels; sizes: median size of each file's samples."""
        usual, odd = signals.odd_one(sizes)
        if odd is not None:
            beside = f"samples of size {sizes[odd]:.2g} (median), all recordings {usual:.2g}"
            raise UserError(f"{files[odd]}: has {beside}: of another unit? give all in one")
        if usual and not SMALLEST < usual * self.scale < 1 / SMALLEST:
            advice = f"set eeg_scale={10 ** -round(math.log10(usual)):g} to make it about 1"
            said = f"{self.folder}: samples are of size {usual:.2g} (median): in volts, or not standardised? {advice}"
            if usual * self.scale <= SMALLEST:
                raise UserError(said)
            print(f"note: {said}")
        if len(counts := {n_chans for n_chans, _ in shapes}) == 1:
            signals.check_names(self.info["ch_names"], counts.pop(), f"{self.folder}/manifest.json")
        if wide := [shape for shape in shapes if shape[0] > shape[1]]:
            print(f"note: {len(wide)} recordings have more channels than samples, first {wide[0]}: transposed?")

    def _hold_out(self, recordings: list[list[Span]], share: float) -> tuple[list[Span], list[Span]]:
        if share <= 0:
            return sum(recordings, []), []
        if len(recordings) >= 5:
            order = draws.permutation(len(recordings), self.seed, "held-out recordings").tolist()
            chosen = order[-max(1, int(share * len(recordings))) :]
            parts = [([], spans) if i in chosen else (spans, []) for i, spans in enumerate(recordings)]
        else:
            parts = [self._cut_tail(spans, share) for spans in recordings]
        train, held = (sum(part, []) for part in zip(*parts, strict=True))
        if not held:
            least = f"five files, or one longer than {2 * self.n_times} samples"
            raise UserError(f"{self.folder}: too little EEG to hold a part out; add recordings ({least})")
        return train, held

    def _cut_tail(self, spans: list[Span], share: float) -> tuple[list[Span], list[Span]]:
        if len(spans) > 1:
            n_kept = len(spans) - max(1, int(share * len(spans)))
            return spans[:n_kept], spans[n_kept:]
        cut = spans[0].stop - max(self.n_times, int(share * spans[0].stop))
        if cut < self.n_times:
            return spans, []
        return [spans[0]._replace(stop=cut)], [spans[0]._replace(start=cut)]

    def _n_windows(self, span: Span) -> int:
        return max(1, (span.stop - span.start) // self.n_times)

    def __len__(self) -> int:
        return int(self.last[-1])

    def __getitem__(self, batch: draws.Batch) -> Tensor:
        """The batch's windows, (B, n_chans, n_times), cropped by (seed, step, global position) alone."""
        span, crop, channel = self.positions(batch)
        return self._windows([self.train[i] for i in span.tolist()], crop.tolist(), channel.tolist())

    def positions(self, batch: draws.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each window of a batch: its span's index in `train`; where in it, in time and over channels, in [0, 1)."""
        crop, channel = batch.mine(draws.rand((batch.total, 2), self.seed, "crop", batch.step).double()).T
        span = np.searchsorted(self.last, batch.index.numpy(), side="right")
        return torch.from_numpy(span), crop, channel

    def held_out_windows(self, max_n: int = 512) -> Tensor:
        """At most `max_n` fixed windows of the held-out part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.held_out, max_n, self.seed, "held-out windows")

    def training_windows(self, max_n: int, seed: int = 0) -> Tensor:
        """At most `max_n` windows of the training part, none overlapping, (N, n_chans, n_times)."""
        return self._fixed(self.train, max_n, seed, "training windows")

    def _fixed(self, spans: list[Span], max_n: int, seed: int, purpose: str) -> Tensor:
        windows = [s._replace(start=s.start + k * self.n_times) for s in spans for k in range(self._n_windows(s))]
        chosen = draws.permutation(len(windows), seed, purpose)[:max_n].sort().values.tolist()
        channel = draws.rand((len(chosen),), seed, purpose, 1).double().tolist()
        return self._windows([windows[i] for i in chosen], [0.0] * len(chosen), channel)

    def _windows(self, spans: Sequence[Span], crop: list[float], channel: list[float]) -> Tensor:
        """One window of each span; `crop` and `channel`, in [0, 1), say where in time and over channels."""
        out = np.empty((len(spans), self.n_chans, self.n_times), np.float32)
        for row, span, u, v in zip(out, spans, crop, channel, strict=True):
            signal = read_span(span)
            start = int(u * max(signal.shape[1] - self.n_times + 1, 1))
            piece = signal[:, start : start + self.n_times]
            first = int(v * max(len(piece) - self.n_chans + 1, 1))
            row[:] = fit_channels(fit_length(piece, self.n_times), self.n_chans, first)
        return torch.from_numpy(out).mul_(self.scale)


class ResidentWindows:
    """The batches of `EEGWindows`, bit for bit, made on `device` by one gather.

    All training spans lie channel by channel in one flat float32 tensor, scaled; those shorter than a window are
    interpolated once, the others kept as recorded. Where to cut is drawn on the CPU as ever, so that a run may go on
    with the other kind of reading. Of several processes each holds the whole corpus on its own GPU, because every
    epoch is shuffled over all of it.
    """

    def __init__(self, windows: EEGWindows, device: torch.device) -> None:
        self.windows, self.device = windows, device
        self.layout = _layout(windows)
        self.flat = torch.empty(corpus_size(windows), device=device)
        for span, (begin, have, length) in zip(windows.train, self.layout.T.tolist(), strict=True):
            signal = fit_length(read_span(span), length)
            signal = torch.from_numpy(np.array(signal, np.float32)).mul_(windows.scale)  # a copy: the file is mapped
            self.flat[begin : begin + have * length] = signal.flatten()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, batch: draws.Batch) -> Tensor:
        """The batch's windows, (B, n_chans, n_times) float32 on the device."""
        n_chans, n_times = self.windows.n_chans, self.windows.n_times
        span, crop, channel = self.windows.positions(batch)
        begin, have, length = self.layout[:, span]
        start = (crop * (length - n_times + 1)).long()
        first = (channel * (have - n_chans + 1).clamp(min=1)).long()  # of more electrodes than asked for
        # What goes to the device is three numbers a window: a small copy does not wait for the step before
        corner = torch.stack([begin + first * length + start, have, length])
        corner, have, length = corner.to(self.device)[:, :, None]
        rows = corner + torch.arange(n_chans, device=self.device) % have * length  # (B, n_chans)
        return self.flat.unfold(0, n_times, 1)[rows]


def _layout(windows: EEGWindows) -> Tensor:
    """(3, S) int64: each training span's first sample in the flat tensor, its electrodes, its samples as laid there."""
    have, length = torch.tensor([read_span(span).shape for span in windows.train]).T
    length = length.clamp(min=windows.n_times)
    size = have * length
    return torch.stack([size.cumsum(0) - size, have, length])


def corpus_size(windows: EEGWindows) -> int:
    """Samples in the flat tensor of all training spans."""
    _, have, length = _layout(windows)
    return int(have @ length)


def is_resident(n_bytes: int, step_bytes: float, device: torch.device) -> bool:
    """Whether a corpus is to be held on the device: a GPU, where it takes half of the free memory at most.

    It must also leave `step_bytes` to a step of training, so that no batch that fits is lost to it.

    On a CPU the files stay mapped: there a gather is a copy as well, and the slower one. On one thread a batch of 100
    windows of (128, 512) of long recordings takes 10 ms from a resident tensor and 5 ms from files in the page cache
    (32 windows: 3.8 and 1.9 ms). Recordings that have to be interpolated are dearer to read (100: 28 ms, resident
    4 ms), which beside a CPU's step is nothing.
    """
    if device.type != "cuda":
        return False
    free = torch.cuda.mem_get_info(device)[0]
    return n_bytes <= min(free / 2, free - step_bytes)


def training_items(windows: EEGWindows, device: torch.device, step_bytes: float) -> EEGWindows | ResidentWindows:
    """What stage A reads its batches from: the device's memory, or the mapped files. Prints which, in one line.

    step_bytes: what a step of training takes on the device.
    """
    n_bytes = 4 * corpus_size(windows)
    size = f"{n_bytes / 1e6:,.1f} MB of training EEG in float32"
    if is_resident(n_bytes, step_bytes, device):
        print(f"{size}: held on {device}, batches are cut there")
        return ResidentWindows(windows, device)
    more = ", as the GPU has too little free memory to hold it" if device.type == "cuda" else ""
    print(f"{size}: batches are read from the memory-mapped files{more}")
    return windows
