"""Make the models of the miniature world: picture classifier, CLIP and Stable Diffusion, on two processor cores.

    python code/make_miniature.py                              the weights in pretrains/miniature, from nothing
    python code/make_miniature.py parts=none                   only measure them, and draw contact sheets
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from config import from_cli, setting
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import dpm_solver, guided, sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.weights import load_base
from miniature import check, classifier, diffusion, towers
from miniature.renderer import TRAINING_SEEDS, UNSEEN_SEEDS
from miniature.training import Pictures, rendered
from runtime import checkpoints, draws
from runtime.errors import UserError, cli

PARTS = ("classifier", "clip", "vae", "unet")
UNET_SIZES = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_heads": 4,
    "context_dim": towers.WIDTH,
}
VAE_SIZES = {"ch": 16, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4}


@dataclass
class MiniatureConfig:
    """The models of the miniature world."""

    out: str = setting("pretrains/miniature", "folder that the models are written to")
    parts: str = setting(",".join(PARTS), "what to train, of classifier, clip, vae, unet; the rest is read from `out`")
    per_class: int = setting(200, "training pictures of each class")
    classifier_steps: int = setting(2500, "steps of 64 pictures")
    clip_steps: int = setting(1500, "steps of 128 pictures with captions")
    vae_steps: int = setting(2500, "steps of 32 pictures")
    unet_steps: int = setting(4000, "steps of 128 latents")
    seed: int = setting(2022, "of every random draw in training")
    sheets: str = setting("results/miniature", "folder for contact sheets of renders, reconstructions and samples")


def save_diffusion(unet: nn.Module, vae: nn.Module, scale_factor: float, folder: Path) -> None:
    """Write `v1-5-pruned.safetensors` (fp16) and `config15.yaml` as Stable Diffusion 1.5 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    state |= {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
    save_file({k: v.half().contiguous() for k, v in state.items()}, folder / "v1-5-pruned.safetensors")
    params = {
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "timesteps": 1000,
        "scale_factor": round(scale_factor, 5),
        "unet_config": {"params": UNET_SIZES},
        "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": VAE_SIZES}},
    }
    OmegaConf.save({"model": {"params": params}}, folder / "config15.yaml")


class Maker:
    """The models in `out`, trained part by part; each part needs those before it in PARTS order."""

    def __init__(self, cfg: MiniatureConfig, pictures: Pictures):
        self.cfg, self.out, self.pictures = cfg, Path(cfg.out), pictures

    def classifier(self) -> dict:
        """Train and write the picture classifier."""
        model = classifier.build(len(self.pictures.names))
        figures = classifier.train_classifier(model, self.pictures, self.cfg.classifier_steps, self.cfg.seed)
        classifier.save_classifier(model, self.pictures, self.out / "classifier")
        return figures

    def clip(self) -> dict:
        """Train and write the miniature CLIP."""
        folder = self.out / "clip"
        model = towers.build(folder)
        figures = towers.train_clip(model, folder, self.pictures, self.cfg.clip_steps, self.cfg.seed)
        towers.save(model, folder)
        return figures

    def vae(self) -> dict:
        """Train and write the autoencoder, beside an untrained UNet."""
        vae = AutoencoderKL(**VAE_SIZES)
        judge = classifier.load_classifier(self.out / "classifier")
        figures = diffusion.train_vae(vae, judge, self.pictures, self.cfg.vae_steps, self.cfg.seed)
        mean, std = diffusion.encode(vae, self.pictures)
        scale = 1 / (mean.var() + std.square().mean()).sqrt().item()
        save_diffusion(UNet(**UNET_SIZES, use_time_cond=False), vae, scale, self.out / "models")
        return figures

    def unet(self) -> dict:
        """Train and write the UNet, on captions read through the text tower."""
        vae, scale = self.base.vae, self.base.sizes.scale_factor
        mean, std = diffusion.encode(vae, self.pictures)
        unet = UNet(**UNET_SIZES, use_time_cond=False)
        latents = (mean * scale, std * scale)
        steps, seed = self.cfg.unet_steps, self.cfg.seed
        figures = diffusion.train_unet(unet, latents, self.context, self.pictures, sd_alphas_cumprod(), steps, seed)
        save_diffusion(unet, vae, scale, self.out / "models")
        return figures

    @property
    def base(self):
        """UNet, autoencoder and their sizes, as every stage loads them."""
        return load_base(self.out, use_time_cond=False)

    def context(self, captions: list[str]) -> Tensor:
        """Captions -> (n, 77, 64)."""
        return towers.contexts(towers.load(self.out / "clip"), self.out / "clip", captions)

    def check(self, unseen: Pictures) -> dict:
        """Every figure of `check.FLOORS` and CLIP's accuracy, on unseen renders; writes the contact sheets."""
        judge, base = classifier.load_classifier(self.out / "classifier"), self.base
        context = {c: row for c, row in zip(["", *unseen.class_captions()], self.context(["", *unseen.class_captions()]))}

        @torch.inference_mode()
        def generate(captions: list[str], seeds: list[int]) -> Tensor:
            some, none = torch.stack([context[c] for c in captions]), context[""].expand(len(captions), -1, -1)
            start = torch.stack([draws.randn((4, 8, 8), s, "check picture") for s in seeds])
            denoise = guided(lambda x, t: base.unet(x, t, some), lambda x, t: base.unet(x, t, none), 3.0)
            z = dpm_solver(denoise, start, sd_alphas_cumprod(), 20)
            return base.vae.decode(z / base.sizes.scale_factor).clamp(-1, 1)

        figures = check.check_classifier(judge, unseen)
        figures["clip_accuracy"] = towers.zero_shot(towers.load(self.out / "clip"), self.out / "clip", unseen)
        vae_figures, back = check.check_vae(base.vae, judge, unseen)
        caption_figures, made = check.check_captions(generate, judge, unseen)
        first = torch.arange(0, len(unseen), len(unseen) // len(unseen.names))
        write_sheet(unseen.images(first), Path(self.cfg.sheets) / "renders.png")
        write_sheet(back[first], Path(self.cfg.sheets) / "reconstructions.png")
        write_sheet(made[: len(first)], Path(self.cfg.sheets) / "from_captions.png")
        return {k: round(v, 4) for k, v in (figures | vae_figures | caption_figures).items()}


def write_sheet(images: Tensor, path: Path, columns: int = 10) -> None:
    """Pictures (n, 3, S, S) in [-1, 1] side by side, each pixel doubled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns) if len(row) == columns], dim=1)
    pixels = ((rows.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.NEAREST).save(path)


def main() -> None:
    cfg = from_cli(MiniatureConfig)
    chosen = [] if cfg.parts == "none" else cfg.parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"parts={cfg.parts}: no part is called {unknown[0]}; there are {', '.join(PARTS)}, and none")
    torch.manual_seed(cfg.seed)
    record_path = Path(cfg.out) / "training.json"
    record = json.loads(record_path.read_text()) if record_path.is_file() else {"parts": {}}
    maker = Maker(cfg, rendered(cfg.per_class, TRAINING_SEEDS) if chosen else None)
    for part in (p for p in PARTS if p in chosen):
        command = " ".join(["python code/make_miniature.py", *map(shlex.quote, sys.argv[1:])])
        record["parts"][part] = {**getattr(maker, part)(), "command": command}
        checkpoints.write_text(record_path, json.dumps(record, indent=1) + "\n")
    if (Path(cfg.out) / "models/v1-5-pruned.safetensors").is_file():
        record["figures"] = maker.check(rendered(20, UNSEEN_SEEDS))
        print(json.dumps(record["figures"], indent=1))
        print("\n".join(check.shortfalls(record["figures"])) or "every floor is reached")
        checkpoints.write_text(record_path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    cli(main)
