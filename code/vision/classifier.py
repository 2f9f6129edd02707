"""Picture classifiers that stage C scores with: pictures in, logits and penultimate features out.

A classifier is a folder (`config.json` + `model.safetensors`, any timm architecture) or the published choice,
torchvision's ViT-H/14 with the SWAG weights, fine-tuned end to end at 518 pixels (88.6 % on ImageNet).
Shapes: N pictures of H x W pixels, K classes, F features, D width of CLIP's space.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from runtime import checkpoints, digests
from runtime.checkpoints import load_strictly
from runtime.errors import UserError
from runtime.pictures import read_pictures

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(pictures: Tensor, side: int, mean: Sequence[float], std: Sequence[float], mode: str) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, side, side), resized with antialiasing in the mode of `F.interpolate`."""
    x = pictures.movedim(-1, 1).float() / 255
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode=mode, antialias=True)
        x = x.clamp(0, 1) if mode == "bicubic" else x  # which overshoots
    mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (mean, std))
    return (x - mean) / std


@dataclass
class PictureClassifier:
    """A frozen network cut into `features` (pixels -> (N, F)) and `head` ((N, F) -> (N, K)), with its preprocessing."""

    name: str
    sha256: str  # of the weights file
    features: nn.Module
    head: nn.Module
    size: int  # pixels: pictures are resized to a square of this side, bicubic
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[str]  # (K,) WordNet ids
    names: list[str]  # (K,) in words
    device: str = "cpu"

    def __post_init__(self) -> None:
        for part in (self.features, self.head):
            part.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Classify pictures.

        Args:
            pictures: (N, H, W, 3) uint8.

        Returns:
            logits (N, K) and penultimate features (N, F), float32, on the CPU.
        """
        features, logits = [], []
        for some in pictures.split(batch_size):
            features.append(self.features(self.pixels(some.to(self.device))).float())
            logits.append(self.head(features[-1]).float())
        return torch.cat(logits).cpu(), torch.cat(features).cpu()

    def pixels(self, pictures: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> normalised float32 (N, 3, size, size)."""
        return normalised(pictures, self.size, self.mean, self.std, "bicubic")

    def index_of(self, wnids: list[str]) -> Tensor:
        """Class number (len(wnids),) int64 of each WordNet id in this classifier; -1 where it does not know one."""
        where = {wnid: k for k, wnid in enumerate(self.classes)}
        return torch.tensor([where.get(wnid, -1) for wnid in wnids])


def load_folder(folder: Path, device: str = "cpu") -> PictureClassifier:
    """A classifier of our own, from `config.json` (architecture, num_classes, img_size, mean, std, classes, names, and
    model_args where the architecture takes some) and `model.safetensors`.

    Raises:
        UserError: a file is missing or the weights are of another network.
    """
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config_path, weights = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights):
        if not path.is_file():
            raise UserError(f"{path}: no such file; a classifier is a folder with config.json, model.safetensors")
    try:
        config = json.loads(config_path.read_text())
        arguments = {"num_classes": config["num_classes"], **config.get("model_args", {})}
        model = timm.create_model(config["architecture"], **arguments)
        state = load_file(weights)
        described = [config[key] for key in ("img_size", "mean", "std", "classes", "names")]
    except SafetensorError as error:
        raise UserError(f"{weights}: is truncated or no safetensors file ({error})") from error
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{config_path}: does not describe a classifier ({error!r})") from error
    load_strictly(model, state, f"{weights}: as {config['architecture']}, the classifier")
    name, head = f"{folder.name} ({config['architecture']})", model.get_classifier()
    model.reset_classifier(0)  # the model now ends in what its last layer was given
    return PictureClassifier(name, digests.sha256(weights), model, head, *described, device)


def load_vit_h_14(weights: Path, device: str = "cpu", model: nn.Module | None = None) -> PictureClassifier:
    """torchvision's ViT-H/14 with IMAGENET1K_SWAG_E2E_V1 weights: resize to 518 bicubic, ImageNet mean and std.

    Our pictures are square, so the preset's crop of 518 after resizing the short side to 518 leaves all of them.

    Args:
        weights: the downloaded .pth file (2.5 GB).
        model: the bare network; built here if None.
    """
    import timm.data
    from torchvision.models import ViT_H_14_Weights, vit_h_14

    state = checkpoints.read_plain(weights, "ViT-H/14 classifier")
    model = model or vit_h_14(image_size=518)
    load_strictly(model, state, f"{weights}: as ViT-H/14, the classifier")
    head, model.heads = model.heads, nn.Identity()
    wnids = timm.data.ImageNetInfo("imagenet-1k").label_names()
    names, name = ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1.meta["categories"], "vit_h_14 (IMAGENET1K_SWAG_E2E_V1)"
    look = model.image_size, IMAGENET_MEAN, IMAGENET_STD
    return PictureClassifier(name, digests.sha256(weights), model, head, *look, wnids, names, device)


def load_classifier(where: str, device: str = "cpu") -> tuple[PictureClassifier | None, str]:
    """The classifier named by `where`: a folder, a .pth file of ViT-H/14, or "vit_h_14" for the torch hub cache.

    Returns:
        (classifier, ""), or (None, sentence) when "vit_h_14" is asked for and its weights were never downloaded: the
        scores that need it are then left out; no other classifier takes its place.

    Raises:
        UserError: a path is given and nothing usable lies there.
    """
    if where == "vit_h_14":
        from torchvision.models import ViT_H_14_Weights

        url = ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1.url
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not path.is_file():
            return None, f"{path}: the classifier's weights are not there (from {url}): class scores are left out"
        return load_vit_h_14(path, device), ""
    path = Path(where)
    if not path.exists():
        raise UserError(f"{path}: no such classifier; give a folder, a ViT-H/14 weights file or vit_h_14")
    return load_vit_h_14(path, device) if path.is_file() else load_folder(path, device), ""


def see_files(
    paths: Sequence[Path], see: Callable[[Tensor], dict[str, Tensor]], batch_size: int = 32
) -> dict[str, Tensor]:
    """What networks see in pictures (N,), read from disk a batch at a time: arrays (N, ...) by name.

    see: (n, H, W, 3) uint8 -> arrays (n, ...) by name.
    """
    parts = [see(read_pictures(paths[start : start + batch_size])) for start in range(0, len(paths), batch_size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def describe(
    paths: Sequence[Path], classifier: PictureClassifier | None,
    embed_images: Callable[[list[Image.Image]], Tensor] | None, batch_size: int = 32,
) -> dict[str, Tensor]:  # fmt: skip
    """What classifier and CLIP see in pictures.

    Args:
        embed_images: PIL pictures -> CLIP embeddings (n, D).

    Returns:
        "logits" (N, K) and "features" (N, F) where there is a classifier, "clip" (N, D) where there is a CLIP; float32.
    """

    def see(pictures: Tensor) -> dict[str, Tensor]:
        seen = {}
        if classifier is not None:
            seen["logits"], seen["features"] = classifier(pictures, batch_size)
        if embed_images is not None:
            seen["clip"] = embed_images([Image.fromarray(picture.numpy()) for picture in pictures])
        return seen

    return see_files(paths, see, batch_size)
