"""A trials file of the real one's size, about 3 GB, in both of torch's formats: how long and how much memory."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = Path(__file__).parents[1]
N_TRIALS, N_IMAGES = 11_965, 1_996

MAKE = """
import sys, torch
folder, zipped, n, n_images = sys.argv[1], sys.argv[2] == "zip", int(sys.argv[3]), int(sys.argv[4])
draw = torch.Generator().manual_seed(0)
length = torch.randint(440, 551, (n,), generator=draw).tolist()
trials = [
    {"eeg": torch.randn(128, length[i], generator=draw), "image": i % n_images, "label": i % n_images % 40,
     "subject": 1 + i * 6 // n}
    for i in range(n)
]
labels = [f"n{i:08d}" for i in range(40)]
content = {"dataset": trials, "labels": labels, "images": [f"{labels[i % 40]}_{i}" for i in range(n_images)]}
torch.save(content, folder + "/eeg_5_95_std.pth", _use_new_zipfile_serialization=zipped)
for name, sizes in (("all", (7970, 1998, 1997)), ("single", (669, 167, 164))):
    order = torch.randperm(sum(sizes), generator=draw).split(sizes)
    parts = {split: part.tolist() for split, part in zip(("train", "val", "test"), order)}
    torch.save({"splits": [parts]}, f"{folder}/block_splits_by_image_{name}.pth")
"""

OPEN = """
import json, resource, sys, time
started = time.time()
from dataset import open_trials
folder, which, subject = sys.argv[1], sys.argv[2], int(sys.argv[3])
imported = time.time()
parts = open_trials(
    folder + "/eeg_5_95_std.pth", f"{folder}/block_splits_by_image_{which}.pth", subject, ("train", "val", "test")
)
found = {
    "trials": [len(p) for p in parts.values()], "left_out": [p.info["left_out"] for p in parts.values()],
    "seconds": time.time() - imported, "with_imports": time.time() - started, "cpu": time.process_time(),
    "gb": sum(p.eeg.nbytes for p in parts.values()) / 1e9,
    "index_space": parts["train"].info["split"]["index_space"],
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
}
print(json.dumps(found))
"""


def run(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().split("\n")


@pytest.mark.full
@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_three_gigabytes_open_quickly_and_in_little_memory(tmp_path, form):
    """Two cores: converted once in the file's size of memory; from then on a subject takes seconds and little."""
    run(MAKE, tmp_path, form, N_TRIALS, N_IMAGES)
    source = tmp_path / "eeg_5_95_std.pth"
    size = source.stat().st_size / 1e9
    started = time.time()
    said, found = run(OPEN, tmp_path, "single", 4)
    first = json.loads(found)
    print(f"\n{form}, {size:.2f} GB. first opening {time.time() - started:.0f} s: {said}\n{first}")
    assert "converted once" in said and size > 2.5
    assert sum(first["trials"]) + sum(first["left_out"]) == 1000 and "subject 4" in first["index_space"]
    assert first["peak_gb"] < size + 1.5, "the file is held once, no more"

    one = json.loads(run(OPEN, tmp_path, "all", 4)[0])
    print(f"one subject: {one}")
    assert 1700 < sum(one["trials"]) < 1995 and one["index_space"] == "the whole file"
    assert one["cpu"] < 10 and one["peak_gb"] < 1.5  # the time on the clock as well, where nothing else runs

    everybody = json.loads(run(OPEN, tmp_path, "all", 0)[0])
    print(f"all six: {everybody}")
    assert sum(everybody["trials"]) + sum(everybody["left_out"]) == N_TRIALS
    assert everybody["peak_gb"] < 1.3 * everybody["gb"]
    shutil.rmtree(tmp_path)  # 6 GB
