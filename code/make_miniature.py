"""Make the models of the miniature world: picture classifier, CLIP and Stable Diffusion, on two processor cores.

python code/make_miniature.py                              the weights in pretrains/miniature, from nothing
python code/make_miniature.py parts=none                   only measure them, and draw contact sheets
python code/make_miniature.py images=my/photographs names=house,face out=pretrains/mine
                                                           teach them photographs that lie in folders by kind
"""

import json
import shlex
import sys
from collections.abc import Callable
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
from dc_ldm.weights import Base, load_base
from miniature import check, classifier, diffusion, towers
from miniature.photographs import divide, find_photographs, photographs
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
# default optimizer steps: on renders, on photographs
STEPS = {"classifier": (1200, 200), "clip": (3000, 60), "vae": (1800, 300), "unet": (6000, 600)}
VAE_SIZES = {"ch": 16, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4}


@dataclass
class MiniatureConfig:
    """The models of the miniature world."""

    out: str = setting("pretrains/miniature", "folder that the models are written to")
    parts: str = setting(",".join(PARTS), "what to train, of classifier, clip, vae, unet; the rest is read from `out`")
    images: str = setting("", "folder <kind>/<photographs> to teach instead of the 100 rendered classes")
    stems: str = setting("", "file with the photograph names, one a line, that training may see; empty: all")
    names: str = setting("", "what the kinds in `images` are called, by comma, in alphabetical order of their folders")
    start: str = setting("", "models to start from; empty: none for the rendered classes, else pretrains/miniature")
    per_class: int = setting(0, "training pictures of each class; 0: 200 renders, 1000 altered photographs")
    classifier_steps: int = setting(0, "steps of 64 pictures; 0: 1200, photographs 200")
    clip_steps: int = setting(0, "steps of 128 pictures with captions; 0: 3000, photographs 60")
    vae_steps: int = setting(0, "steps of 32 pictures; 0: 1800, photographs 300")
    unet_steps: int = setting(0, "steps of 64 latents; 0: 6000, photographs 600")
    seed: int = setting(2022, "of every random draw in training")
    sheets: str = setting("results/miniature", "folder for contact sheets of truth, reconstructions and samples")


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
    """The models in `cfg.out`, trained part by part; each part needs those before it in the order of PARTS.

    Each part starts from that of `cfg.start` where there is one.
    """

    def __init__(self, cfg: MiniatureConfig, pictures: Pictures | None):
        self.cfg, self.out, self.pictures = cfg, Path(cfg.out), pictures
        start = cfg.start or (cfg.images and "pretrains/miniature")
        self.start = Path(start) if start else None
        for folder in filter(None, (self.start, None if pictures else self.out)):
            if not (folder / "training.json").is_file():
                raise UserError(f"{folder}: holds no training.json of miniature models; make them first")

    def steps(self, part: str) -> int:
        """Optimizer steps of a part: as set, or the default of this kind of pictures."""
        return getattr(self.cfg, f"{part}_steps") or STEPS[part][bool(self.cfg.images)]

    def classifier(self) -> dict:
        """Train and write the picture classifier."""
        model = classifier.build(len(self.pictures.names))
        if self.start:
            model = classifier.load_classifier(self.start / "classifier")
            model.requires_grad_(True)
        if self.start and self.cfg.images:
            model.reset_classifier(len(self.pictures.names))
        figures = classifier.train_classifier(model, self.pictures, self.steps("classifier"), self.cfg.seed)
        classifier.save_classifier(model, self.pictures, self.out / "classifier")
        return figures

    def clip(self) -> dict:
        """Train and write the miniature CLIP."""
        folder = self.out / "clip"
        model = towers.build(folder)
        if self.start:
            model = towers.load(self.start / "clip").requires_grad_(True)
        figures = towers.train_clip(model, folder, self.pictures, self.steps("clip"), self.cfg.seed)
        towers.save(model, folder)
        return figures

    def vae(self) -> dict:
        """Train and write the autoencoder, beside a UNet that is still to be trained."""
        vae = AutoencoderKL(**VAE_SIZES)
        if self.start:
            vae = load_base(self.start, use_time_cond=False).vae.requires_grad_(True)
        judge = classifier.load_classifier(self.out / "classifier")
        lr = 1e-3 if self.start else 2e-3
        figures = diffusion.train_vae(vae, judge, self.pictures, self.steps("vae"), self.cfg.seed, lr)
        mean, std = diffusion.encode(vae, self.pictures)
        scale = 1 / (mean.var() + std.square().mean()).sqrt().item()
        save_diffusion(UNet(**UNET_SIZES, use_time_cond=False), vae, scale, self.out / "models")
        return figures

    def unet(self) -> dict:
        """Train and write the UNet, on captions read through the text tower."""
        base = self.base
        scale = base.sizes.scale_factor
        mean, std = diffusion.encode(base.vae, self.pictures)
        unet = UNet(**UNET_SIZES, use_time_cond=False)
        if self.start:
            unet = load_base(self.start, use_time_cond=False).unet.requires_grad_(True)
        latents, steps = (mean * scale, std * scale), self.steps("unet")
        figures = diffusion.train_unet(
            unet, latents, self.context, self.pictures, sd_alphas_cumprod(), steps, self.cfg.seed
        )
        save_diffusion(unet, base.vae, scale, self.out / "models")
        return figures

    @property
    def base(self) -> Base:
        """UNet, autoencoder and their sizes, as every stage loads them."""
        return load_base(self.out, use_time_cond=False)

    def context(self, captions: list[str]) -> Tensor:
        """Captions -> (n, 77, 64)."""
        return towers.contexts(towers.load(self.out / "clip"), self.out / "clip", captions)

    def sampler(self, captions: list[str]) -> Callable[[list[str], list[int]], Tensor]:
        """A function (captions, seeds) -> pictures (n, 3, 64, 64): 20 DPM-Solver++ steps, guidance 3, bfloat16."""
        context = dict(zip(["", *captions], self.context(["", *captions]), strict=True))
        base = self.base

        @torch.inference_mode()
        @torch.autocast("cpu", torch.bfloat16)
        def generate(wanted: list[str], seeds: list[int]) -> Tensor:
            some, none = torch.stack([context[c] for c in wanted]), context[""].expand(len(wanted), -1, -1)
            noise = torch.stack([draws.randn((4, 8, 8), seed, "check picture") for seed in seeds])
            denoise = guided(lambda x, t: base.unet(x, t, some), lambda x, t: base.unet(x, t, none), 3.0)
            z = dpm_solver(denoise, noise, sd_alphas_cumprod(), 20)
            return base.vae.decode(z / base.sizes.scale_factor).float().clamp(-1, 1)

        return generate

    def check(self, unseen: Pictures) -> dict:
        """Every figure of `check.FLOORS` and CLIP's accuracy, on pictures not trained on; writes contact sheets."""
        clip, sheets = self.out / "clip", Path(self.cfg.sheets)
        judge = classifier.load_classifier(self.out / "classifier")
        figures = check.check_classifier(judge, unseen)
        figures["clip_accuracy"] = towers.zero_shot(towers.load(clip), clip, unseen)
        vae_figures, back = check.check_vae(self.base.vae, judge, unseen)
        kinds = unseen.class_captions()
        each = max(5, 20 // len(kinds))
        caption_figures, made = check.check_captions(self.sampler(kinds), judge, unseen, each)
        first = torch.arange(0, len(unseen), max(1, len(unseen) // 100))
        write_sheet(unseen.images(first), sheets / "truth.png")
        write_sheet(back[first], sheets / "reconstructions.png")
        write_sheet(made[:100], sheets / "from_captions.png")
        return {k: round(v, 4) for k, v in (figures | vae_figures | caption_figures).items()}


def write_sheet(images: Tensor, path: Path, columns: int = 10) -> None:
    """Pictures (n, 3, S, S) in [-1, 1] side by side, each pixel doubled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.cat([images, images.new_full((-len(images) % columns, *images.shape[1:]), -1.0)])
    rows = torch.cat([torch.cat(list(row), dim=2) for row in images.split(columns)], dim=1)
    pixels = ((rows.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    Image.fromarray(pixels).resize((2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.NEAREST).save(path)


def open_pictures(cfg: MiniatureConfig, train: bool) -> tuple[Pictures | None, Pictures]:
    """Pictures to train on (None unless `train`), and others to check with.

    Where every photograph may be trained on, the check can only use the same ones.

    Raises:
        UserError: as `find_photographs` and `divide`, or the number of names is not that of the kinds.
    """
    if not cfg.images:
        return rendered(cfg.per_class or 200, TRAINING_SEEDS) if train else None, rendered(20, UNSEEN_SEEDS)
    found = find_photographs(Path(cfg.images))
    seen, unseen = divide(found, Path(cfg.stems)) if cfg.stems else (found, found)
    names = cfg.names.split(",") if cfg.names else list(found)
    if len(names) != len(found):
        raise UserError(f"names={cfg.names}: {len(names)} names for {len(found)} kinds ({', '.join(found)})")
    if not all(len(files) > 1 for files in unseen.values()):
        raise UserError(f"stems={cfg.stems}: leaves fewer than two photographs of a kind to check with")
    seen = photographs(seen, names, cfg.per_class or 1000, cfg.seed) if train else None
    return seen, photographs(unseen, names, 0, cfg.seed)


def read_record(folder: Path) -> dict:
    """training.json of a folder of models, or an empty one: for each part its runs, one after the other."""
    path = folder / "training.json"
    return json.loads(path.read_text()) if path.is_file() else {"parts": {}}


def main() -> None:
    cfg = from_cli(MiniatureConfig)
    chosen = [] if cfg.parts == "none" else cfg.parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"parts={cfg.parts}: no part is called {unknown[0]}; there are {', '.join(PARTS)}, and none")
    torch.manual_seed(cfg.seed)
    command = " ".join(["python code/make_miniature.py", *map(shlex.quote, sys.argv[1:])])
    record_path = Path(cfg.out) / "training.json"
    record = read_record(Path(cfg.out))
    pictures, unseen = open_pictures(cfg, bool(chosen))
    maker = Maker(cfg, pictures)
    earlier = read_record(maker.start)["parts"] if maker.start else {}
    for part in (p for p in PARTS if p in chosen):
        record["parts"][part] = [*earlier.get(part, []), {**getattr(maker, part)(), "command": command}]
        checkpoints.write_text(record_path, json.dumps(record, indent=1) + "\n")
    if missing := [part for part in PARTS if part not in record["parts"]]:
        print(f"not measured: {cfg.out} still lacks {', '.join(missing)}")
        return
    record["figures"] = maker.check(unseen)
    checkpoints.write_text(record_path, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["figures"], indent=1))
    if not cfg.images:
        print("\n".join(check.shortfalls(record["figures"])) or "every floor is reached")


if __name__ == "__main__":
    cli(main)
