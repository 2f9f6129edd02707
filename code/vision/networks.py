"""The frozen networks by whose features the field compares pictures, and what they say of an evaluation's pictures.

Each picture goes through each network once. Kept is how alike it is to every distinct truth: the correlation of the
flattened features (AlexNet after its 2nd and 5th convolution, average pools of Inception v3, EfficientNet-B1 and
SwAV's ResNet-50: the protocol of Ozcelik and VanRullen 2023 and of MindEye, Scotti et al. 2023), or minus LPIPS
(Zhang et al. 2018, AlexNet). Weights are looked for, never downloaded; nothing takes the place of missing ones.

Shapes: N trials, S pictures of a trial, U distinct images among the truths, n pictures of H x W pixels, D features.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime import checkpoints
from runtime.checkpoints import load_strictly
from runtime.errors import UserError
from vision.classifier import IMAGENET_MEAN, IMAGENET_STD

See = Callable[[Tensor], dict[str, Tensor]]  # (n, H, W, 3) uint8 -> features (n, D) by name
# Part of the cache's key beside the weights; to be changed with whatever else features depend on
PREPARED = "1: sides 256 (AlexNet), 64 to 256 (LPIPS, torchmetrics' alex.pth), 342, 255, 224; bilinear, antialias"
HUB = "https://download.pytorch.org/models/"


def _prepared(pictures: Tensor, side: int) -> Tensor:
    """uint8 (n, H, W, 3) -> (n, 3, side, side) with ImageNet's mean and deviation.

    The whole picture, as the field does; the networks' own presets would cut off a margin.
    """
    x = pictures.movedim(-1, 1).float() / 255
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def _read(make: Callable[[], nn.Module], path: Path, what: str, drop: tuple[str, ...], prefix: str = "") -> nn.Module:
    """`make()` with the weights of a file, strictly, but for names that begin with `drop`: parts that were cut off."""
    state = {name.removeprefix(prefix): value for name, value in checkpoints.read_plain(path, what).items()}
    state = {name: value for name, value in state.items() if not name.startswith(drop)}
    with torch.device("meta"):
        network = make()
    # a counter that only training reads, and that files older than it lack
    counters = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    state = {name: torch.tensor(0) for name in counters} | state
    load_strictly(network, state, f"{path}: as {what}")
    return network.eval().requires_grad_(False)


def _alexnet_layers() -> nn.Module:
    from torchvision.models import alexnet

    network = alexnet().features
    return nn.ModuleDict({"features": network[:12]})  # without the last pool, which no score reads


def _layers(network: nn.Module, x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
    """Outputs of AlexNet's numbered layers."""
    found = []
    for number, layer in enumerate(network["features"]):
        x = layer(x)
        if number in wanted:
            found.append(x)
    return found


def _alexnet(path: Path, device: str) -> See:
    network = _read(_alexnet_layers, path, "AlexNet", ("classifier.",)).to(device)

    def see(pictures: Tensor) -> dict[str, Tensor]:
        second, fifth = _layers(network, _prepared(pictures, 256), (4, 11))
        return {"alexnet2": second.flatten(1), "alexnet5": fifth.flatten(1)}

    return see


def lpips_vectors(path: Path, device: str) -> See:
    """Vectors whose squared distance is LPIPS: of five layers the features of unit length, times the root of the linear
    layer's weight and of 1 / places. Pictures of 64 to 256 pixels are taken as they are, others resized to these.
    """
    from torchmetrics.functional import image

    linear = checkpoints.read_plain(Path(image.__file__).parent / "lpips_models/alex.pth", "linear layers of LPIPS")
    weights = [linear[f"lin{k}.model.1.weight"].to(device) for k in range(5)]
    network = _read(_alexnet_layers, path, "AlexNet", ("classifier.",)).to(device)

    def see(pictures: Tensor) -> dict[str, Tensor]:
        side = min(max(pictures.shape[1], 64), 256)
        parts = []
        for x, weight in zip(_layers(network, _prepared(pictures, side), (1, 4, 7, 9, 11)), weights, strict=True):
            unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
            parts.append((unit * (weight / x[0, 0].numel()).sqrt()).flatten(1))
        return {"lpips": torch.cat(parts, 1)}

    return see


def _inception() -> nn.Module:
    from torchvision.models import inception_v3

    network = inception_v3(aux_logits=False, transform_input=True, init_weights=False)
    network.fc = nn.Identity()
    return network


def _efficientnet() -> nn.Module:
    from torchvision.models import efficientnet_b1

    network = efficientnet_b1()
    network.classifier = nn.Identity()
    return network


def _resnet() -> nn.Module:
    from torchvision.models import resnet50

    network = resnet50()
    network.fc = nn.Identity()
    return network


def _pooled(
    name: str, side: int, make: Callable[[], nn.Module], drop: tuple[str, ...], prefix: str, path: Path, device: str
) -> See:
    """A network cut after its average pool; pictures are resized to `side` pixels."""
    network = _read(make, path, name, drop, prefix).to(device)
    return lambda pictures: {name: network(_prepared(pictures, side))}


def _fid(path: Path, device: str) -> See:
    """torch-fidelity's port of the Inception by which FID and KID are defined, with its own resizing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    checkpoints.read_plain(path, "Inception of FID")  # refuses what could run code; the library's reader would not
    try:
        network = FeatureExtractorInceptionV3("fid", ["2048"], str(path)).to(device)
    except RuntimeError as error:
        raise UserError(f"{path}: is not the Inception of FID ({str(error).splitlines()[0]})") from error
    return lambda pictures: {"fid": network(pictures.movedim(-1, 1))[0]}


class Network(NamedTuple):
    """A network, what is said of pictures by it, and where its weights come from."""

    scores: str  # in words
    names: tuple[str, ...]  # of its features
    url: str
    load: Callable[[Path, str], See]  # weights, device

    def weights(self, root: str | Path) -> Path | None:
        """Its weights file, in torch hub's cache folder or below `root`; None where neither has it."""
        folders = Path(torch.hub.get_dir()) / "checkpoints", Path(root) / "pretrains/features"
        return next((path for f in folders if (path := f / Path(self.url).name).is_file()), None)

    def left_out(self, root: str | Path) -> str:
        """The sentence that stands where its scores would."""
        if self.weights(root) is not None:
            return f"{self.scores}: left out, because not asked for (networks=auto)."
        return (
            f"{self.scores}: left out, because {Path(self.url).name} was not at hand "
            f"(from {self.url}, into torch hub's cache folder or pretrains/features)."
        )


NETWORKS = (
    Network("AlexNet 2 and 5", ("alexnet2", "alexnet5"), HUB + "alexnet-owt-7be5be79.pth", _alexnet),
    Network("LPIPS", ("lpips",), HUB + "alexnet-owt-7be5be79.pth", lpips_vectors),
    Network("Inception", ("inception",), HUB + "inception_v3_google-0cc3c7bd.pth",
            partial(_pooled, "inception", 342, _inception, ("AuxLogits.", "fc."), "")),
    Network("EfficientNet", ("efficientnet_b1",), HUB + "efficientnet_b1-c27df63c.pth",
            partial(_pooled, "efficientnet_b1", 255, _efficientnet, ("classifier.",), "")),
    Network("SwAV", ("swav",), "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
            partial(_pooled, "swav", 224, _resnet, ("projection_head.", "prototypes."), "module.")),
    Network("FID and KID", ("fid",),
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            _fid),
)  # fmt: skip
