"""The frozen networks by whose features the field compares pictures, and what they say of an evaluation's pictures.

Each picture goes through each network once. Kept is how alike it is to every distinct truth: the correlation of the
flattened features (AlexNet after its 2nd and 5th convolution, average pools of Inception v3, EfficientNet-B1 and
SwAV's ResNet-50: the protocol of Ozcelik and VanRullen 2023 and of MindEye, Scotti et al. 2023), or minus LPIPS
(Zhang et al. 2018, AlexNet). Weights are looked for, never downloaded; nothing takes the place of missing ones.

Shapes: N trials, S pictures of a trial, U distinct images among the truths, n pictures of H x W pixels, D features.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from runtime import checkpoints
from runtime.checkpoints import check_finite, check_tensors, load_strictly
from runtime.errors import as_sentence
from vision.classifier import IMAGENET_MEAN, IMAGENET_STD, normalised

See = Callable[[Tensor], dict[str, Tensor]]  # (n, H, W, 3) uint8 -> features (n, D) by name
# Part of the cache's key beside the weights; to be changed with whatever else features depend on
PREPARED = "1: sides 256 (AlexNet), 64 to 256 (LPIPS, torchmetrics' alex.pth), 342, 255, 224; bilinear, antialias"
HUB = "https://download.pytorch.org/models/"
# Parts of weight files that no score reads: classifiers, Inception's second one, what SwAV trained with
HEADS = ("classifier.", "fc.", "AuxLogits.", "projection_head.", "prototypes.")


def _prepared(pictures: Tensor, side: int) -> Tensor:
    """uint8 (n, H, W, 3) -> (n, 3, side, side) with ImageNet's mean and deviation.

    The whole picture, as the field does; the networks' own presets would cut off a margin.
    """
    return normalised(pictures, side, IMAGENET_MEAN, IMAGENET_STD, "bilinear")


def _cut(model: str, nodes: dict[str, str], path: Path, device: str, **options: object) -> nn.Module:
    """torchvision's `model` with the weights of a file, strictly: pictures (n, 3, side, side) -> outputs by name.

    nodes: name of an output by the layer that it is read from; whatever lies behind the last one is cut off.
    """
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    state = checkpoints.read_plain(path, f"weight file of {model}")
    check_tensors(state, f"{path}: as {model}")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith(HEADS)}
    with torch.device("meta"):
        network = create_feature_extractor(get_model(model, **options), nodes)
    # a counter that only training reads, and that files older than it lack
    counters = [name for name in network.state_dict() if name.endswith("num_batches_tracked")]
    load_strictly(network, {name: torch.tensor(0) for name in counters} | state, f"{path}: as {model}")
    return network.eval().requires_grad_(False).to(device)


def _flat(model: str, side: int, nodes: dict[str, str], path: Path, device: str, **options: object) -> See:
    """Outputs of `_cut` as vectors; pictures are resized to `side` pixels."""
    network = _cut(model, nodes, path, device, **options)
    return lambda pictures: {name: x.flatten(1) for name, x in network(_prepared(pictures, side)).items()}


def lpips_vectors(path: Path, device: str) -> See:
    """Vectors whose squared distance is LPIPS: of five layers the features of unit length, times the root of the linear
    layer's weight and of 1 / places. Pictures of 64 to 256 pixels are taken as they are, others resized to these.
    """
    from torchmetrics.functional import image

    linear = checkpoints.read_plain(Path(image.__file__).parent / "lpips_models/alex.pth", "linear layers of LPIPS")
    weights = [linear[f"lin{k}.model.1.weight"].to(device) for k in range(5)]
    network = _cut("alexnet", {f"features.{layer}": str(layer) for layer in (1, 4, 7, 9, 11)}, path, device)

    def see(pictures: Tensor) -> dict[str, Tensor]:
        side = min(max(pictures.shape[1], 64), 256)
        parts = []
        for x, weight in zip(network(_prepared(pictures, side)).values(), weights, strict=True):
            unit = x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()
            parts.append((unit * (weight / x[0, 0].numel()).sqrt()).flatten(1))
        return {"lpips": torch.cat(parts, 1)}

    return see


def _fid(path: Path, device: str) -> See:
    """torch-fidelity's port of the Inception by which FID and KID are defined, with its own resizing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # refuses what could run code; the library's reader would not
    check_finite(check_tensors(checkpoints.read_plain(path, "Inception of FID"), str(path)), str(path))
    with as_sentence(f"{path}: is not the Inception of FID"):
        network = FeatureExtractorInceptionV3("fid", ["2048"], str(path)).to(device)
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
    Network("AlexNet 2 and 5", ("alexnet2", "alexnet5"), HUB + "alexnet-owt-7be5be79.pth",
            partial(_flat, "alexnet", 256, {"features.4": "alexnet2", "features.11": "alexnet5"})),
    Network("LPIPS", ("lpips",), HUB + "alexnet-owt-7be5be79.pth", lpips_vectors),
    Network("Inception", ("inception",), HUB + "inception_v3_google-0cc3c7bd.pth",
            partial(_flat, "inception_v3", 342, {"avgpool": "inception"}, aux_logits=False, transform_input=True,
                    init_weights=False)),
    Network("EfficientNet", ("efficientnet_b1",), HUB + "efficientnet_b1-c27df63c.pth",
            partial(_flat, "efficientnet_b1", 255, {"avgpool": "efficientnet_b1"})),
    Network("SwAV", ("swav",), "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
            partial(_flat, "resnet50", 224, {"avgpool": "swav"})),
    Network("FID and KID", ("fid",),
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
            _fid),
)  # fmt: skip
