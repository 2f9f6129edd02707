"""Make the miniature world's models on two processor cores: classifier, CLIP, Stable Diffusion.

python code/run.py make_miniature                              the weights in pretrains/miniature, from nothing
python code/run.py make_miniature parts=none                   only measure them, and draw contact sheets
python code/run.py make_miniature images=my/photographs names=house,face out=pretrains/mine
                                                           teach them photographs that lie in folders by kind
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.utils import save_image

from config import from_cli, setting
from dc_ldm.models.autoencoder import AutoencoderKL
from dc_ldm.models.samplers import dpm_solver, guided, sd_alphas_cumprod
from dc_ldm.models.unet import UNet
from dc_ldm.weights import load_base
from miniature import check, classifier, diffusion, towers
from miniature.diffusion import UNET_SIZES, VAE_SIZES
from miniature.photographs import divide, find_photographs, photographs
from miniature.renderer import TRAINING_SEEDS, UNSEEN_SEEDS
from miniature.training import Pictures, rendered
from runtime import atomic, draws
from runtime.errors import UserError

PARTS = ("classifier", "clip", "vae", "unet")
# optimizer steps: on renders, on photographs
STEPS = {"classifier": (1200, 200), "clip": (3000, 60), "vae": (1800, 300), "unet": (6000, 600)}
START = Path("pretrains/miniature")  # what photographs are taught to


@dataclass
class MiniatureConfig:
    """The models of the miniature world."""

    out: str = setting("pretrains/miniature", "folder that the models are written to")
    parts: str = setting(",".join(PARTS), "what to train, of classifier, clip, vae, unet; the rest is read from `out`")
    images: str = setting("", "folder <kind>/<photographs> to teach instead of the 100 rendered classes")
    stems: str = setting("", "file with the photograph names, one a line, that training may see; empty: all")
    names: str = setting("", "what the kinds in `images` are called, by comma, in alphabetical order of their folders")
    per_class: int = setting(0, "training pictures of each class; 0: 200 renders, 1000 altered photographs")
    steps: int = setting(0, "optimizer steps of each part; 0: 1200, 3000, 1800, 6000 on renders, fewer on photographs")
    seed: int = setting(2022, "of every random draw in training")
    sheets: str = setting("results/miniature", "folder for contact sheets of truth, reconstructions and samples")


def save_diffusion(unet: nn.Module, vae: nn.Module, scale_factor: float, folder: Path) -> None:
    """Write `v1-5-pruned.safetensors` (fp16) and `config15.yaml` as Stable Diffusion 1.5 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    state |= {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
    save_file({k: v.half().contiguous() for k, v in state.items()}, folder / "v1-5-pruned.safetensors")
    schedule = {"linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000}
    params = {**schedule, "scale_factor": round(scale_factor, 5), "unet_config": {"params": UNET_SIZES}}
    params["first_stage_config"] = {"params": {"embed_dim": 4, "ddconfig": VAE_SIZES}}
    OmegaConf.save({"model": {"params": params}}, folder / "config15.yaml")


class Maker:
    """The models in `cfg.out`, trained part by part; each part needs those before it in the order of PARTS.

    Photographs are taught to the committed models, renders to untrained ones.
    """

    def __init__(self, cfg: MiniatureConfig, pictures: Pictures | None):
        self.cfg, self.out, self.pictures = cfg, Path(cfg.out), pictures
        self.start = START if cfg.images else None

    def classifier(self, steps: int) -> dict:
        """Train and write the picture classifier."""
        model = classifier.build(len(self.pictures.names))
        if self.start:
            model = classifier.load_classifier(self.start / "classifier")
            model.reset_classifier(len(self.pictures.names))
        return classifier.train_classifier(model, self.out / "classifier", self.pictures, steps, self.cfg.seed)

    def clip(self, steps: int) -> dict:
        """Train and write the miniature CLIP."""
        untrained = towers.build(self.out / "clip")  # which also writes the tokenizer
        model = towers.load(self.start / "clip") if self.start else untrained
        return towers.train_clip(model, self.out / "clip", self.pictures, steps, self.cfg.seed)

    def vae(self, steps: int) -> dict:
        """Train and write the autoencoder, beside a UNet that is still to be trained."""
        vae, lr = AutoencoderKL(**VAE_SIZES), 2e-3
        if self.start:
            vae, lr = load_base(self.start, use_time_cond=False).vae, 1e-3
        judge = classifier.load_classifier(self.out / "classifier")
        figures = diffusion.train_vae(vae, judge, self.pictures, steps, self.cfg.seed, lr)
        mean, std = diffusion.encode(vae, self.pictures)
        scale = 1 / (mean.var() + std.square().mean()).sqrt().item()
        save_diffusion(UNet(**UNET_SIZES, use_time_cond=False), vae, scale, self.out / "models")
        return figures

    def unet(self, steps: int) -> dict:
        """Train and write the UNet, on captions read through the text tower."""
        base = load_base(self.out, use_time_cond=False)
        scale = base.sizes.scale_factor
        mean, std = diffusion.encode(base.vae, self.pictures)
        unet = UNet(**UNET_SIZES, use_time_cond=False)
        if self.start:
            unet = load_base(self.start, use_time_cond=False).unet
        context, latents = partial(towers.contexts, self.out / "clip"), (mean * scale, std * scale)
        figures = diffusion.train_unet(unet, latents, context, self.pictures, sd_alphas_cumprod(), steps, self.cfg.seed)
        save_diffusion(unet, base.vae, scale, self.out / "models")
        return figures

    def sampler(self, captions: list[str]) -> Callable[[list[str], list[int]], Tensor]:
        """A function (captions, seeds) -> pictures (n, 3, 64, 64): 20 DPM-Solver++ steps, guidance 3, bfloat16."""
        known = ["", *captions]
        context = dict(zip(known, towers.contexts(self.out / "clip", known), strict=True))
        base = load_base(self.out, use_time_cond=False)

        @torch.inference_mode()
        @torch.autocast("cpu", torch.bfloat16)
        def generate(wanted: list[str], seeds: list[int]) -> Tensor:
            some, none = torch.stack([context[c] for c in wanted]), context[""].expand(len(wanted), -1, -1)
            noise = torch.stack([draws.randn((4, 8, 8), seed, "check picture") for seed in seeds])
            prepared = base.unet.prepare(torch.cat([none, some]))
            denoise = guided(lambda x, t: base.unet(x, t, prepared), 3.0)
            z = dpm_solver(denoise, noise, sd_alphas_cumprod(), 20)
            return base.vae.decode(z / base.sizes.scale_factor).float().clamp(-1, 1)

        return generate

    def check(self, unseen: Pictures) -> dict:
        """Every figure of `check.FLOORS` and CLIP's accuracy, on pictures not trained on; writes contact sheets."""
        judge = classifier.load_classifier(self.out / "classifier")
        figures = {"classifier_accuracy": check.first_ranked(judge, unseen.images(), unseen.labels)}
        figures["clip_accuracy"] = towers.zero_shot(self.out / "clip", unseen)
        vae_figures, back = check.check_vae(load_base(self.out, use_time_cond=False).vae, judge, unseen)
        kinds = unseen.class_captions()
        caption_figures, made = check.check_captions(self.sampler(kinds), judge, unseen, max(5, 20 // len(kinds)))
        every = slice(None, None, max(1, len(unseen) // 100))
        sheets = {"truth": unseen.images(every), "reconstructions": back[every], "from_captions": made[:100]}
        Path(self.cfg.sheets).mkdir(parents=True, exist_ok=True)
        for name, pictures in sheets.items():
            levels = ((F.interpolate(pictures, scale_factor=2) + 1) * 127.5).round()
            save_image(levels / 255, f"{self.cfg.sheets}/{name}.png", nrow=10, padding=0)
        return {k: round(v, 4) for k, v in (figures | vae_figures | caption_figures).items()}


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


def read_record(folder: Path, needed: bool) -> dict:
    """training.json of a folder of models, or an empty one: for each part its runs, one after the other.

    Raises:
        UserError: it is not there and `needed`.
    """
    path = folder / "training.json"
    if needed and not path.is_file():
        raise UserError(f"{folder}: holds no training.json of miniature models; make them first")
    return json.loads(path.read_text()) if path.is_file() else {"parts": {}}


def main() -> None:
    cfg = from_cli(MiniatureConfig)
    chosen = [] if cfg.parts == "none" else cfg.parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UserError(f"parts={cfg.parts}: no part is called {unknown[0]}; there are {', '.join(PARTS)}, and none")
    torch.manual_seed(cfg.seed)
    command = " ".join(["python code/run.py make_miniature", *map(shlex.quote, sys.argv[1:])])
    record_path = Path(cfg.out) / "training.json"
    record = read_record(Path(cfg.out), needed=not chosen)
    earlier = read_record(START, needed=True)["parts"] if cfg.images else {}
    pictures, unseen = open_pictures(cfg, bool(chosen))
    maker = Maker(cfg, pictures)
    for part in (p for p in PARTS if p in chosen):
        figures = getattr(maker, part)(cfg.steps or STEPS[part][bool(cfg.images)])
        record["parts"][part] = [*earlier.get(part, []), {**figures, "command": command}]
        atomic.write_text(record_path, json.dumps(record, indent=1) + "\n")
    if missing := [part for part in PARTS if part not in record["parts"]]:
        print(f"not measured: {cfg.out} still lacks {', '.join(missing)}")
        return
    record["figures"] = maker.check(unseen)
    atomic.write_text(record_path, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["figures"], indent=1))
    if not cfg.images:
        print("\n".join(check.shortfalls(record["figures"])) or "every floor is reached")
