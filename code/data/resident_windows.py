"""Stage A's training windows, gathered on a GPU that holds the whole corpus.

Shapes: B windows of a batch, C electrodes of a span, T samples of a span, S spans.
"""

import numpy as np
import torch
from torch import Tensor

from data.signals import fit_length, read_span
from dataset import EEGWindows
from runtime.draws import Batch


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
            signal = read_span(span)
            signal = fit_length(signal, length)
            signal = torch.from_numpy(np.array(signal, np.float32)).mul_(windows.scale)  # a copy: the file is mapped
            self.flat[begin : begin + have * length] = signal.flatten()

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, batch: Batch) -> Tensor:
        """The batch's windows, (B, n_chans, n_times) float32 on the device."""
        n_chans, n_times = self.windows.n_chans, self.windows.n_times
        span, crop, channel = self.windows.places(batch)
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
    shapes = torch.tensor([read_span(span).shape for span in windows.train]).T
    have, length = shapes[0], shapes[1].clamp(min=windows.n_times)
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
    """What stage A reads its batches from, told in one printed line: the device's memory, or the mapped files.

    step_bytes: what a step of training takes there.
    """
    n_bytes = 4 * corpus_size(windows)
    size = f"{n_bytes / 1e6:,.1f} MB of training EEG in float32"
    if is_resident(n_bytes, step_bytes, device):
        print(f"{size}: held on {device}, batches are cut there")
        return ResidentWindows(windows, device)
    more = ", as the GPU has too little free memory to hold it" if device.type == "cuda" else ""
    print(f"{size}: batches are read from the memory-mapped files{more}")
    return windows
