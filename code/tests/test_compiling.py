"""torch.compile behind a setting: the same training within rounding, and one sentence where it cannot work."""

import pytest
import torch
from torch import nn

from runtime import devices
from runtime.errors import UserError


def test_without_a_compiler_the_setting_is_refused(monkeypatch):
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        devices.compile_in_place(nn.Linear(2, 2))


def test_names_of_parameters_stay():
    network = nn.Sequential(nn.Linear(2, 3))
    before = list(network.state_dict())
    devices.compile_in_place(network)
    assert list(network.state_dict()) == before


def test_a_compiled_network_answers_and_learns_the_same():
    torch.manual_seed(0)
    from sc_mbm.mae_for_eeg import MAEforEEG

    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    mae = MAEforEEG(8, 64, 4, **sizes, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    eeg, noise = torch.randn(4, 8, 64), torch.rand(4, 16)
    found = []
    for compiled in (False, True):
        if compiled:
            devices.compile_in_place(mae)
        mae.zero_grad()
        loss = mae(eeg, 0.75, noise)[0]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in mae.parameters() if p.grad is not None)])
    for plain, translated in zip(*found, strict=True):
        torch.testing.assert_close(translated, plain, rtol=1e-4, atol=1e-6)
