"""The frozen networks by whose features the field compares pictures, and what they say of an evaluation's pictures.

Each picture goes through each network once. Kept is how alike it is to every distinct truth: the correlation of the
flattened features (AlexNet after its 2nd and 5th convolution, average pools of Inception v3, EfficientNet-B1 and
SwAV's ResNet-50: the protocol of Ozcelik and VanRullen 2023 and of MindEye, Scotti et al. 2023), or minus LPIPS
(Zhang et al. 2018, AlexNet). Weights are looked for, never downloaded; nothing takes the place of missing ones.

Shapes: N trials, S pictures of a trial, U distinct images among the truths, n pictures of H x W pixels, D features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dc_ldm.weights import load_strictly
from evaluation.folder import Outcome, count_samples, read_pictures
from evaluation.sampling import picture_path
from evaluation.similarity import pearson, pixel_mse
from runtime import checkpoints
from runtime.errors import UserError
from vision.cache import cached
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


def never_looked(real: Outcome, root: str | Path) -> list[str]:
    """A sentence for each network whose scores a run lacks. root: folder that holds `pretrains/features`."""
    known = {*real.alike, *(["fid"] if real.fid is not None else [])}
    return [network.left_out(root) for network in NETWORKS if not known.issuperset(network.names)]


@torch.inference_mode()
def _seen(see: See, paths: Sequence[Path], device: str) -> dict[str, Tensor]:
    """Features of pictures, float32 on the CPU."""
    return {name: values.float().cpu() for name, values in see(read_pictures(paths).to(device)).items()}


def _compared(made: dict[str, Tensor], shown: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features (n, D) of pictures and (U, D) of truths -> what is kept of the pictures (n, ...)."""
    found = {}
    for name, values in made.items():
        a, b = values.numpy(), shown[name].numpy()
        if name == "fid":  # compares sets
            found[name] = values
        else:
            alike = -pixel_mse(a, b) * a.shape[1] if name == "lpips" else pearson(a, b)
            found[f"alike_{name}"] = torch.from_numpy(alike)
    return found


def _batches(paths: Sequence[Path], size: int = 32) -> Iterator[Sequence[Path]]:
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(parts)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def network_arrays(
    root: str | Path, places: dict[str, Path], image: Sequence[str], device: str = "cpu"
) -> dict[str, Tensor]:
    """What all networks whose weights are at hand say of an evaluation's pictures, for arrays.safetensors.

    Features of the truths are kept in `datasets/cache`, under the pixels and the weights that they depend on.

    Args:
        root: folder that holds `pretrains/features` and `datasets/cache`.
        places: run ("real" and controls) -> folder of its test<i>-<k>.png; truths lie in that of "real".
        image: (N,) name of the image that each trial showed.

    Returns:
        `<run>.alike_<name>` (N, S, U); `<run>.fid` (N, S, 2048) and `truth.fid` (N, 2048), float32.
        Nothing of a network without weights: `never_looked` says so.

    Raises:
        UserError: a weights file is damaged or of another network, or a picture is missing.
    """
    store = Path(root) / "datasets/cache"
    _, first, row = np.unique(image, return_index=True, return_inverse=True)
    shown = [picture_path(places["real"], i, 0) for i in first.tolist()]
    pixels = sha256(b"".join(sha256(read_pictures([path]).numpy().tobytes()).digest() for path in shown)).hexdigest()
    arrays = {}
    for network in NETWORKS:
        path = network.weights(root)
        if path is None:
            continue
        seen = partial(_seen, network.load(path, device), device=device)
        truths = cache(lambda seen=seen: _joined(seen(paths) for paths in _batches(shown)))
        known = {
            name: cached(store, name, [], [PREPARED, pixels, checkpoints.sha256(path)], lambda n=name, t=truths: t()[n])
            for name in network.names
        }
        arrays |= {"truth.fid": known["fid"][row]} if "fid" in known else {}
        for run, place in places.items():
            shape = len(image), count_samples(place)
            paths = [picture_path(place, i, k + 1) for i in range(shape[0]) for k in range(shape[1])]
            found = _joined(_compared(seen(some), known) for some in _batches(paths))
            arrays |= {f"{run}.{name}": values.float().unflatten(0, shape) for name, values in found.items()}
    return arrays
