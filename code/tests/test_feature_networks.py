"""Networks by whose features pictures are compared, against other libraries; weight files in the real ones' formats."""

import numpy as np
import pytest
import torch
from fidelity import agrees
from made_up_eval import make_arrays, pictures, random
from PIL import Image

import vision.classifier as classifier
import vision.networks as networks
from evaluation import features
from evaluation.fid import distances, set_scores, too_few
from evaluation.folder import Outcome, Truth
from evaluation.scores import item_scores
from evaluation.similarity import ssim
from runtime.errors import UserError

ALEXNET = "alexnet-owt-7be5be79.pth"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with AlexNet's file (random, its classifier cut down) and 5 trials, the last two of one image."""
    from torchvision.models import alexnet

    root = tmp_path_factory.mktemp("root")
    (root / "pretrains/features").mkdir(parents=True)
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = alexnet().state_dict()
    state = {k: torch.randn(v.shape) * v[0].numel() ** -0.5 for k, v in shapes.items() if k.startswith("features.")}
    torch.save(state | {"classifier.6.bias": torch.zeros(1)}, root / "pretrains/features" / ALEXNET)
    (root / "samples").mkdir()
    shown, made = pictures(5, 64), pictures(10, 64, 7)
    shown[4] = shown[3]
    for i in range(5):
        for k, picture in enumerate((shown[i], *made[2 * i : 2 * i + 2])):
            Image.fromarray(picture).save(root / "samples" / f"test{i}-{k}.png")
    return root


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


def ask(root):
    return features.network_arrays(root, {"real": root / "samples"}, list("abcdd"))


def test_lpips_of_all_pairs_is_torchmetrics_pair_by_pair(root):
    from torchmetrics.functional.image.lpips import _LPIPS

    oracle = _LPIPS(net="alex", pnet_rand=True).eval()
    state = torch.load(root / "pretrains/features" / ALEXNET)
    for part in (oracle.net.slice1, oracle.net.slice2, oracle.net.slice3, oracle.net.slice4, oracle.net.slice5):
        for number, layer in part.named_children():
            for name, values in layer.named_parameters():
                values.copy_(state[f"features.{number}.{name}"])
    found = ask(root)["real.alike_lpips"]
    shown, made = (
        torch.from_numpy(v).movedim(-1, 1).float() / 127.5 - 1 for v in (pictures(5, 64), pictures(10, 64, 7))
    )
    with torch.no_grad():
        wanted = torch.stack([oracle(made, truth.expand_as(made)).flatten() for truth in shown[:4]], 1)
    agrees("LPIPS", "torchmetrics", -found.flatten(0, 1), wanted, atol=1e-5)


def test_ssim_is_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = pictures(3, 40), pictures(3, 40, 7)
    tensors = [torch.from_numpy(v).movedim(-1, 1).double() for v in (a, b)]
    _, places = structural_similarity_index_measure(*tensors, data_range=255.0, return_full_image=True)
    # its own mean takes in a margin where windows reach over the edge, of mirrored pixels; Wang et al. do not
    wanted = places[..., 5:-5, 5:-5].mean((1, 2, 3))
    agrees("SSIM", "torchmetrics", torch.from_numpy(ssim(a, b).diagonal().copy()), wanted, atol=1e-5)


def test_alexnets_layers_are_correlated_and_truths_kept(root, monkeypatch):
    from torchvision.models import alexnet

    arrays = ask(root)
    assert {key: tuple(v.shape) for key, v in arrays.items()} == {
        f"real.alike_{name}": (5, 2, 4) for name in ("alexnet2", "alexnet5", "lpips")
    }
    with torch.device("meta"):
        model = alexnet()
    model.features.to_empty(device="cpu")
    state = torch.load(root / "pretrains/features" / ALEXNET)
    model.features.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    x, y = (networks._prepared(torch.from_numpy(v[:1]), 256) for v in (pictures(10, 64, 7), pictures(5, 64)))
    with torch.no_grad():
        a, b = (model.features[:5](v).flatten().numpy() for v in (x, y))
    assert arrays["real.alike_alexnet2"][0, 0, 0] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
    with torch.inference_mode():
        layers = networks.NETWORKS[0].load(root / "pretrains/features" / ALEXNET, "cpu")(
            torch.from_numpy(pictures(1, 64))
        )
        shown = networks._prepared(torch.from_numpy(pictures(1, 64)), 256)
        for name, depth in (("alexnet2", 5), ("alexnet5", 12)):
            assert torch.equal(layers[name], model.features[:depth](shown).flatten(1)), name

    asked = []
    for module in (features, classifier):
        monkeypatch.setattr(
            module, "read_pictures", lambda paths, read=features.read_pictures: asked.extend(paths) or read(paths)
        )
    again = ask(root)
    assert all(torch.equal(again[key], arrays[key]) for key in arrays)
    truths = [path.name for path in asked if path.name.endswith("-0.png")]
    assert len(truths) == 4  # for their hash: no network has seen them again


def test_missing_weights_are_named_and_damaged_ones_refused(root, tmp_path):
    found = features.never_looked(Outcome(alike={"alexnet2": 0, "alexnet5": 0, "lpips": 0}), root)
    assert [sentence.split(":")[0] for sentence in found] == ["Inception", "EfficientNet", "SwAV", "FID and KID"]
    assert "swav_800ep_pretrain.pth.tar" in found[2] and "https://dl.fbaipublicfiles.com" in found[2]
    asked = [sentence for sentence in features.never_looked(Outcome(), root) if "not asked for" in sentence]
    assert asked == [f"{n}: left out, because not asked for (networks=auto)." for n in ("AlexNet 2 and 5", "LPIPS")]
    assert all("was not at hand" in sentence for sentence in features.never_looked(Outcome(), tmp_path))
    place = tmp_path / "pretrains/features"
    place.mkdir(parents=True)
    for content, words in ((b"PK", "truncated|cannot be read"), ({"features.0.weight": torch.zeros(2)}, "as alexnet")):
        (place / ALEXNET).write_bytes(content) if isinstance(content, bytes) else torch.save(content, place / ALEXNET)
        with pytest.raises(UserError, match=words):
            features.network_arrays(tmp_path, {"real": root / "samples"}, list("abcdd"))


@pytest.mark.full
@pytest.mark.parametrize("number", [2, 3, 4])
def test_pooled_networks_are_torchvisions_without_their_heads(root, tmp_path, number):
    """SwAV's file carries a prefix and heads of its training; the others classifiers and Inception's second head."""
    from torchvision.models import efficientnet_b1, inception_v3, resnet50

    torch.manual_seed(0)
    model = {2: lambda: inception_v3(init_weights=False, transform_input=True), 3: efficientnet_b1, 4: resnet50}[
        number
    ]()
    state = model.eval().state_dict()
    if number == 4:
        state = {f"module.{name}": value for name, value in state.items() if not name.startswith("fc.")}
        state |= {"module.prototypes.weight": torch.zeros(2), "module.projection_head.0.weight": torch.zeros(2)}
    path, network = tmp_path / "weights.pth", networks.NETWORKS[number]
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, path)
    some = torch.from_numpy(pictures(2, 64))
    seen = []
    model.get_submodule("avgpool").register_forward_hook(lambda _, __, out: seen.append(out.flatten(1)))
    with torch.inference_mode():
        (found,) = network.load(path, "cpu")(some).values()
        model(networks._prepared(some, {2: 342, 3: 255, 4: 224}[number]))
    assert torch.equal(found, seen[0])


# Distances


def fid_run(n=150, samples=1, seed=0):
    g = random(seed)
    truth = Truth(np.zeros(n, int), np.full(n, -1), np.arange(n).astype(str), fid=g.normal(size=(n, 2048)).astype("f"))
    return Outcome(fid=(g.normal(size=(n, samples, 2048)) + 0.1).astype("f")), truth


def test_kid_is_torchmetrics_and_fid_refused_below_its_n():
    from torchmetrics.image.kid import poly_mmd

    outcome, truth = fid_run()
    found = set_scores(outcome, truth)
    assert list(found) == ["kid"] and found["kid"]["lower_better"] and found["kid"]["n"] == 150
    whole = poly_mmd(torch.from_numpy(outcome.fid[:, 0]).double(), torch.from_numpy(truth.fid).double())
    agrees("KID, mean of subsets", "torchmetrics, whole set", torch.tensor(found["kid"]["value"]), whole, atol=4e-3)
    assert [sentence.split(" ")[0] for sentence in too_few(150, 150)] == ["FID"]
    assert len(too_few(99, 5000)) == 2 and too_few(2049, 2049) == []
    assert set_scores(*fid_run(40)) == {}


@pytest.mark.full
def test_fid_is_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    outcome, truth = fid_run(2100)
    sets = [torch.from_numpy(v).double() for v in (outcome.fid[:, 0], truth.fid)]
    wanted = _compute_fid(*(part for v in sets for part in (v.mean(0), torch.cov(v.T))))
    agrees("FID", "torchmetrics", torch.tensor(set_scores(outcome, truth)["fid"]["value"]), wanted, atol=1e-2)


def test_a_distance_to_the_truth_is_low_where_pictures_are_alike():
    alike = random().uniform(-1, 1, (2, 6, 6)).astype(np.float32)
    found = distances({"swav": alike, "alexnet2": alike}, np.arange(6))
    assert list(found) == ["distance_swav"]
    assert np.allclose(-found["distance_swav"].samples, 1 - alike[:, range(6), range(6)])
    outcome, truth = make_arrays()
    scores = item_scores(outcome._replace(alike={"lpips": -random().random((24, 2, 24))}), truth)
    assert (scores["distance_lpips"].value < 0).all() and "two_way_lpips" in scores
