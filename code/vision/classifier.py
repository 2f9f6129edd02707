"""Picture classifiers that stage C scores with: pictures in, logits and penultimate features out.

A classifier is a folder (`config.json` + `model.safetensors`, any timm architecture) or the published choice,
torchvision's ViT-H/14 with the SWAG weights, fine-tuned end to end at 518 pixels (88.6 % on ImageNet).
Shapes: N pictures of H x W pixels, K classes, F features, D width of CLIP's space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from runtime import checkpoints, digests
from runtime.checkpoints import check_state, load_strictly, on_meta
from runtime.contents import Colour, Deviations, Finite, Side, Size
from runtime.errors import UserError, as_sentence
from runtime.model_files import read_tensors
from runtime.pictures import read_pictures
from runtime.plain import checked, read_json, record

# config.json of a classifier's folder; no timm name of the hub or of a folder
OTHER_WEIGHTS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
DESCRIBED = record(
    {"model_args": dict[str, str | int | Finite | bool | None | Sequence[int | Finite | str]]},
    architecture=Annotated[str, Field(pattern=r"^\w[\w.]*$")], num_classes=Size, img_size=Side, mean=Colour,
    std=Deviations, classes=Sequence[Annotated[str, Field(min_length=1)]], names=Sequence[str],
)  # fmt: skip
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


def read_described(path: Path) -> dict[str, Any]:
    """A classifier's config.json, checked. Raises UserError."""
    config = checked(DESCRIBED, read_json(path, "classifier's description"), str(path))
    if other := sorted(OTHER_WEIGHTS & config.get("model_args", {}).keys()):
        raise UserError(f"{path}: model_args has {', '.join(other)}, but weights come from model.safetensors alone")
    count, ids, names = config["num_classes"], config["classes"], config["names"]
    if not count == len(ids) == len(set(ids)) == len(names):
        found = f"{len(ids)} classes, of which {len(set(ids))} are different, and {len(names)} names"
        raise UserError(f"{path}: num_classes is {count}, but there are {found}")
    return config


def load_folder(folder: Path, device: str = "cpu") -> PictureClassifier:
    """A classifier of our own, from `config.json` (as DESCRIBED) and `model.safetensors`.

    Raises:
        UserError: a file is missing, or does not describe a network, or the weights are of another one.
    """
    import timm

    weights = folder / "model.safetensors"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}/config.json: no such file; a classifier is a folder with it and model.safetensors")
    config = read_described(folder / "config.json")
    arguments = config.get("model_args", {}) | {"num_classes": config["num_classes"], "pretrained": False}
    kind, what = f"as {config['architecture']}", f"{weights}: as {config['architecture']}, the classifier"
    build = partial(timm.create_model, config["architecture"], **arguments)
    empty = on_meta(build, f"{folder}/config.json: {kind}").state_dict()
    state = read_tensors(weights, "a classifier")
    check_state(empty, state, what)
    model = build()
    load_strictly(model, state, what)
    name, head = f"{folder.name} ({config['architecture']})", model.get_classifier()
    described = [config[key] for key in ("img_size", "mean", "std", "classes", "names")]
    with as_sentence(f"{folder}/config.json: {kind} and with img_size={config['img_size']} it takes no picture"):
        model.reset_classifier(0)  # the model now ends in what its last layer was given
        classifier = PictureClassifier(name, digests.sha256(weights), model, head, *described, device)
        head(model(classifier.pixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device=device))))
    return classifier


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
    if not path.is_file() and not path.is_dir():
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
