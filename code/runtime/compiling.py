"""torch.compile for networks that run long enough to pay for it."""

import os
import shutil

from torch import nn

from runtime.errors import UserError


def compile_in_place(*networks: nn.Module) -> None:
    """Let torch.compile translate what the networks compute, at their first call; names of parameters stay.

    Raises:
        UserError: there is no C++ compiler, without which nothing can be translated.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "g++").split()[0], "clang++"))):
        raise UserError("compile=true needs a C++ compiler (g++ or clang++, or one named by CXX), and none was found")
    for network in networks:
        network.compile()
