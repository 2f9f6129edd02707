"""Any system from its checkpoint, for stage C and notebooks: `load_generator(path).generate(eeg, seeds, sampling)`.

Whatever system made the checkpoint: its `format` says which loader opens it. A new system is one more line in SYSTEMS.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from dc_ldm import generator, weights
from dc_ldm.generator import check_sampler
from dc_ldm.published import read_stage_b
from evaluation.seam import System
from runtime.checkpoints import read_plain
from runtime.devices import compile_in_place, pick_device, pick_dtype
from runtime.digests import sha256
from runtime.errors import UserError
from runtime.file_kinds import OURS_B, PUBLISHED_B, UNKNOWN, expect, file_kind
from runtime.plain import short
from runtime.sampling import Sampling
from sc_mbm.mae_for_eeg import EEGEncoder
from vision.clip import FrozenCLIP, OpenCLIP


def load_generator(
    checkpoint: str | Path,
    pretrain_gm_path: str | Path = "",
    device: str = "auto",
    precision: str = "auto",
    clip: FrozenCLIP | OpenCLIP | None = None,
    compile: bool = False,
) -> System:
    """A trained system with the methods of `evaluation/seam.py`, the ones that stage C uses.

    Args:
        checkpoint: of a system in SYSTEMS, or the published generation checkpoint.
        pretrain_gm_path: folder whose models/ holds Stable Diffusion; empty: searched, see `find_base`.
        device: auto, cpu, cuda or cuda:N.
        precision: 32, bf16, or auto: bf16 where the device computes in it. Embeddings are computed in float32 always.
        clip: Stable Diffusion's own CLIP, whose text tower is needed for pictures by class name.
        compile: let torch.compile translate the denoiser.

    Raises:
        UserError: the checkpoint, its Stable Diffusion or the device is not what is wanted.
    """
    load = SYSTEMS[format_of(checkpoint)].open
    return load(Path(checkpoint), pretrain_gm_path, pick_device(device), pick_dtype(precision, device), clip, compile)


def format_of(checkpoint: str | Path) -> str:
    """The `format` of a checkpoint of a known system; the published one counts as ours. Raises UserError."""
    wanted = f"stage B checkpoint, of one of the formats {', '.join(SYSTEMS)}"
    kind, name, problem = file_kind(checkpoint), None, None
    if kind == PUBLISHED_B:
        return weights.FORMAT
    try:  # its own word first: a system may well hold tensors that are named like another file's
        name = read_plain(checkpoint, wanted).get("format")
    except UserError as error:
        problem = error
    if isinstance(name, str) and name in SYSTEMS:
        return name
    if kind != UNKNOWN:
        expect(checkpoint, (OURS_B, PUBLISHED_B), wanted)
    if problem:
        raise problem
    raise UserError(f"{checkpoint}: has {f'format {short(name)}' if name else 'no format field'}; expected a {wanted}")


def dreamdiffusion(
    checkpoint: Path,
    pretrain_gm_path: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    clip: FrozenCLIP | OpenCLIP | None,
    compile: bool,
) -> generator.EEGImageGenerator:
    """Stage B's model on its Stable Diffusion. Arguments as `load_generator`'s; raises as it does."""
    base = pretrain_gm_path or find_base(checkpoint, read_stage_b(checkpoint, "pretrains")["base"])
    system = generator.load_generator(checkpoint, base, device, EEGEncoder, dtype)
    if compile:
        compile_in_place(system.unet)
    if isinstance(clip, FrozenCLIP):
        system.text_states = clip.text_states
    return system


def check_dreamdiffusion(checkpoint: Path, pretrain_gm_path: str | Path, sampling: Sampling) -> None:
    """Its sampler and steps, and that Stable Diffusion's files are there. Raises UserError."""
    check_sampler(sampling.sampler, sampling.steps)
    if file_kind(checkpoint) != PUBLISHED_B:  # which carries its own
        weights.base_files(pretrain_gm_path)


class Loader(NamedTuple):
    """How a system is opened."""

    open: Callable[..., System]  # as `dreamdiffusion`
    check: Callable[[Path, str | Path, Sampling], None] = lambda *_: None  # refuses what can be told without opening


SYSTEMS = {weights.FORMAT: Loader(dreamdiffusion, check_dreamdiffusion)}  # by the format of their checkpoints


def check_request(checkpoint: str | Path, pretrain_gm_path: str | Path, sampling: Sampling) -> None:
    """Refuse, before any work, a checkpoint of no known system, and what its system cannot do. Raises UserError."""
    SYSTEMS[format_of(checkpoint)].check(Path(checkpoint), pretrain_gm_path, sampling)


def find_base(checkpoint: str | Path, base: dict) -> Path:
    """The folder whose models/ holds the Stable Diffusion that a stage B checkpoint was trained on.

    Looked for in every pretrains/ beside or above the checkpoint and here, and in the folders in it, by the `base`
    entry of its content (name and sha256). Raises UserError.
    """
    roots = [folder / "pretrains" for folder in (*Path(checkpoint).resolve().parents, Path.cwd())]
    if not base["sha256"]:  # the published checkpoint carries its own
        return next((root for root in roots if (root / "models").is_dir()), roots[-1])
    folders = [folder for root in roots for folder in (root, *sorted(root.glob("*/")))]
    holding = list(dict.fromkeys(folder for folder in folders if (folder / "models" / base["name"]).is_file()))
    if not holding:
        raise UserError(f"{checkpoint}: {base['name']} is in no pretrains/ near it or here; set pretrain_gm_path")
    if len(holding) == 1:  # load_generator compares its hash
        return holding[0]
    same = (folder for folder in holding if sha256(folder / "models" / base["name"]) == base["sha256"])
    return next(same, holding[0])
