"""Resume points: written before validation and repeated from there to the bit; refused where they cannot be."""

import errno
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from test_stage_b import Interrupted, some_trials, tiny_module

from runtime import checkpoints, lock, pickles, wandb_log
from runtime.errors import UserError, in_words
from runtime.loop import Schedule, fit
from runtime.runs import open_run

KEPT = {"score": float, "epoch": int, "model": dict}
SETTINGS = {"batch_size": 5, "num_epoch": 3, "seed": 1, "device": "cpu", "precision": "32"}  # 5 steps an epoch


def train(folder, items=None, fails: int = 0, kept=KEPT, **changed):
    """Three epochs whose best is kept; the validation of epoch `fails` ends as if memory did."""
    module, asked = tiny_module(finetune="E"), []

    def validate(epoch: int) -> dict[str, float]:
        asked.append(epoch)
        if epoch == fails:
            raise MemoryError("no room")
        score = float(sum(value.sum() for value in module.training_state().values()).abs()) % 1
        if score > module.state.get("score", -1.0):
            module.state = {"score": score, "epoch": epoch, "model": module.training_state()}
        return {"figure": score}

    fit(module, items or some_trials(), open_run(folder, {}), Schedule(**SETTINGS | changed), validate, kept)
    return module, asked


def last_of(folder) -> dict:
    return checkpoints.load(folder / "last.pth", ("resume-1",), "resume point")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return folder, *train(folder)


def same(one, other) -> bool:
    """Whether plain values with tensors are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one if k not in ("time", "lr"))
    return one == other


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_validation_that_fails_loses_no_epoch_and_is_repeated_to_the_bit(straight, tmp_path, fails):
    folder, module, asked = straight
    with pytest.raises(UserError, match="does not fit in the memory"):
        train(tmp_path, fails=fails)
    assert last_of(tmp_path)["step"] == 5 * fails and len(last_of(tmp_path)["rows"]) == fails - 1
    resumed, again = train(tmp_path)
    assert asked == [1, 2, 3] and again == asked[fails - 1 :]
    assert same(module.training_state(), resumed.training_state()) and same(module.state, resumed.state)
    assert (tmp_path / "metrics.csv").read_text() == (folder / "metrics.csv").read_text()
    assert same(last_of(folder), last_of(tmp_path))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A resume point in the middle of the second epoch."""
    folder, items = tmp_path_factory.mktemp("stopped"), some_trials()
    items.__class__ = Interrupted
    with pytest.raises(SystemExit):
        train(folder, items)
    return last_of(folder)


def without(key):
    return lambda c: c.pop(key)


def tensors(change, key="module"):
    """Change the first tensor of a part."""

    def changed(content):
        part = content[key]["state"][0] if key == "optimizer" else content[key]
        name = "exp_avg" if key == "optimizer" else next(iter(part))
        content[key] = {**content[key], "state": {**content[key]["state"], 0: {**part, name: change(part[name])}}} if (
            key == "optimizer"
        ) else {**part, name: change(part[name])}  # fmt: skip

    return changed


DAMAGE = {
    "no step": (without("step"), "lacks step"),
    "step of text": (lambda c: c.update(step="x"), "step is 'x'"),
    "step True": (lambda c: c.update(step=True), "step is True"),
    "step beyond the end": (lambda c: c.update(step=10**9), "step is 1000000000 of 15"),
    "step below 0": (lambda c: c.update(step=-5), "step is -5"),
    "another step": (lambda c: c.update(step=9), "losses"),
    "step and losses of another": (lambda c: c.update(step=9, losses=[1.0] * 4), "not at step 9"),
    "rows of text": (lambda c: c.update(rows="x"), "rows is 'x'"),
    "a row of text": (lambda c: c.update(rows=[{"epoch": 1, "step": "5"}]), "rows"),
    "rows twice": (lambda c: c.update(rows=c["rows"] * 2), "rows of metrics"),
    "rows without steps": (lambda c: c.update(rows=[{"epoch": 1}]), "rows of metrics"),
    "no losses": (without("losses"), "lacks losses"),
    "losses of text": (lambda c: c.update(losses=["x"]), "losses.0 is 'x'"),
    "losses that are not finite": (lambda c: c.update(losses=[math.nan] * 3), "finite"),
    "no optimizer": (without("optimizer"), "lacks optimizer"),
    "optimizer of another size": (lambda c: c["optimizer"]["state"].pop(3), "lacks 3 tensors"),
    "an empty optimizer": (lambda c: c["optimizer"].update(state={}), "lacks"),
    "moments of text": (lambda c: c["optimizer"]["state"].update({0: "x"}), "optimizer: 0 is 'x'"),
    "moments of another shape": (tensors(lambda t: t[..., :1], "optimizer"), "another shape"),
    "moments that are not finite": (tensors(lambda t: t + math.inf, "optimizer"), "exp_avg 0 holds numbers"),
    "no tensors": (lambda c: c.update(module={}), "lacks"),
    "tensors of text": (tensors(lambda t: "x"), "expected a tensor"),
    "tensors of whole numbers": (tensors(lambda t: t.long()), "torch.int64"),
    "sparse tensors": (tensors(lambda t: t.to_sparse()), "neither a tensor nor a plain value"),
    "tensors of another shape": (tensors(lambda t: t.flatten()), "another shape"),
    "NaN in tensors": (tensors(lambda t: t * math.nan), "not finite"),
    "no state": (without("state"), "lacks state"),
    "best epoch of text": (lambda c: c.update(state={**c["state"], "model": "x"}), "'x'"),
    "best epoch without tensors": (lambda c: c.update(state={**c["state"], "model": {}}), "lacks"),
    "score not finite": (lambda c: c.update(state={**c["state"], "score": math.nan}), "finite"),
    "score of text": (lambda c: c.update(state={**c["state"], "score": "x"}), "score"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_resume_point_that_cannot_be_is_refused_in_one_sentence(stopped, tmp_path, damage):
    change, said = DAMAGE[damage]
    content = {**stopped, "optimizer": {**stopped["optimizer"], "state": dict(stopped["optimizer"]["state"])}}
    change(content)
    checkpoints.save(tmp_path / "last.pth", content)
    (tmp_path / "config.yaml").write_text("{}")
    before = (tmp_path / "last.pth").read_bytes()
    with pytest.raises(UserError, match=said) as refused:
        train(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/last.pth") and "\n" not in str(refused.value)
    assert str(refused.value).endswith("move it aside and the run begins anew, or use overwrite=true")
    assert (tmp_path / "last.pth").read_bytes() == before


def test_what_the_last_validation_kept_must_be_there(stopped, tmp_path):
    checkpoints.save(tmp_path / "last.pth", {**stopped, "state": {}})
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="state: lacks score"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("spoilt", "named"),
    [
        ("eeg", "EEG hold"),
        ("moments", "latents hold"),
        ("clip", "CLIP targets hold"),
        ("eeg clip", "(EEG|CLIP targets) and (EEG|CLIP targets) hold"),
    ],
)
def test_a_loss_that_is_not_finite_at_once_names_eeg_and_caches(tmp_path, spoilt, named):
    items = some_trials()
    for name in spoilt.split():
        getattr(items, name)[-1] = math.nan  # of `eeg` maybe not in the first batch
    with pytest.raises(UserError, match=f"is nan at step .*; {named}.* that are not finite: delete the caches"):
        train(tmp_path, items)
    assert not (tmp_path / "checkpoint.pth").exists()


def test_a_loss_that_is_not_finite_on_finite_data_says_so(tmp_path):
    items = some_trials()
    items.clip *= 1e30
    items.eeg *= 3e37
    with pytest.raises(UserError, match=r"at step 0 .*EEG \(up to \d\.\d+e\+3\d\) and caches are finite: look"):
        train(tmp_path, items)


def test_a_later_loss_that_is_not_finite_names_step_and_rate_and_leaves_the_resume_point(tmp_path):
    with pytest.raises(UserError, match=r"at step [1-9]\d* \(learning rate 1e\+30\)|no longer finite after step"):
        module = tiny_module(lr=1e30)
        fit(module, some_trials(), open_run(tmp_path, {}), Schedule(**SETTINGS), lambda epoch: {})
    assert not (tmp_path / "last.pth").exists()


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    whole = torch.optim.AdamW.step

    def step(self, *args, **more):
        answer = whole(self, *args, **more)
        if float(next(iter(self.state.values()))["step"]) == 10:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return answer

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(UserError, match=r"weights are no longer finite after step 10 \(learning rate 0.01\)"):
        train(tmp_path)
    assert last_of(tmp_path)["step"] == 5


def test_more_batches_in_a_step_than_an_epoch_holds_are_refused(tmp_path):
    with pytest.raises(UserError, match="accumulate_grad= 1000000000: an epoch holds .* batches; lower it"):
        train(tmp_path, num_epoch=1, accumulate=10**9)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_disk_or_memory_that_fails_is_no_damage_of_a_resume_point(stopped, tmp_path, monkeypatch, error):
    lock.release(open_run(tmp_path, {}).folder)
    checkpoints.save(tmp_path / "last.pth", stopped)

    def load(*_, **__):
        raise error

    for name, place in {"load": torch, "_survey": pickles}.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, name, load)
            with pytest.raises(UserError) as failed, in_words():
                train(tmp_path)
        assert "move it aside" not in str(failed.value) and "truncated" not in str(failed.value)


class Wandb(SimpleNamespace):
    """wandb, which fails where it is told to; `told` is what it was given."""

    def __init__(self, fails: str = "") -> None:
        super().__init__(fails=fails, told=[], Settings=dict)

    def _do(self, name: str, *given, **more) -> None:
        self.told.append((name, *given))
        if name == self.fails:
            raise ConnectionResetError("the network is gone\nfor long")

    def init(self, **more):
        self._do("init")

    def log(self, row, step):
        self._do("log", row["epoch"], step)

    def teardown(self):
        self._do("teardown")


@pytest.mark.parametrize("fails", ["", "log", "teardown"])
def test_logging_ends_no_run(tmp_path, monkeypatch, capsys, fails):
    wandb = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb_log._Log, "works", False)
    train(tmp_path / "without")
    assert not wandb.told
    wandb_log.start(tmp_path)
    train(tmp_path / "with")
    wandb_log.call("teardown")
    printed = capsys.readouterr().out
    assert printed.count("wandb failed (the network is gone) and is left out") == bool(fails)
    logs = [("log", 1, 5), ("log", 2, 10), ("log", 3, 15)][: 1 if fails == "log" else 3]
    assert wandb.told == [("init",), *logs, ("teardown",)] + [("teardown",)] * (fails == "teardown")
    assert same(last_of(tmp_path / "with"), last_of(tmp_path / "without"))


def test_a_missing_login_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb("init"))
    monkeypatch.setattr(wandb_log._Log, "works", False)
    with pytest.raises(UserError, match=r"the network is gone\): run `wandb login`, .*WANDB_MODE=offline.*wandb=false"):
        wandb_log.start(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb=false"):
        wandb_log.start(tmp_path)
