"""Pictures and embeddings from EEG in a notebook: `load_generator(checkpoint).generate(eeg, seeds, steps=20)`."""

from pathlib import Path

from dc_ldm import generator
from dc_ldm.published import about_stage_b
from runtime.checkpoints import sha256
from runtime.devices import pick_device, pick_dtype
from runtime.errors import UserError
from sc_mbm.mae_for_eeg import EEGEncoder


def load_generator(
    checkpoint: str | Path, pretrain_gm_path: str | Path = "", device: str = "auto", precision: str = "auto"
) -> generator.EEGImageGenerator:
    """A trained stage B model with `generate` and `embed`, the functions that stage C uses.

    Args:
        checkpoint: ours, or the published generation checkpoint.
        pretrain_gm_path: folder whose models/ holds Stable Diffusion; empty: searched, see `find_base`.
        device: auto, cpu, cuda or cuda:N.
        precision: 32, bf16, or auto: bf16 where the device computes in it. Embeddings are computed in float32 always.

    Raises:
        UserError: the checkpoint, its Stable Diffusion or the device is not what is wanted.
    """
    base = pretrain_gm_path or find_base(checkpoint, about_stage_b(checkpoint, "pretrains")["base"])
    return generator.load_generator(checkpoint, base, pick_device(device), EEGEncoder, pick_dtype(precision, device))


def find_base(checkpoint: str | Path, base: dict) -> Path:
    """The folder whose models/ holds the Stable Diffusion that a stage B checkpoint was trained on.

    Looked for in every pretrains/ beside or above the checkpoint and here, and in the folders in it, by the `base`
    entry of its content (name and sha256). Raises UserError.
    """
    roots = [folder / "pretrains" for folder in (*Path(checkpoint).resolve().parents, Path.cwd())]
    if not base["sha256"]:  # the published checkpoint carries its own
        return next((root for root in roots if (root / "models").is_dir()), roots[-1])
    folders = [folder for root in roots for folder in (root, *sorted(root.glob("*/")))]
    found = list(dict.fromkeys(folder for folder in folders if (folder / "models" / base["name"]).is_file()))
    if not found:
        raise UserError(f"{checkpoint}: {base['name']} is in no pretrains/ near it or here; set pretrain_gm_path")
    if len(found) == 1:  # load_generator compares its hash
        return found[0]
    return next((folder for folder in found if sha256(folder / "models" / base["name"]) == base["sha256"]), found[0])
