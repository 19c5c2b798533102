"""Networks in TorchScript files. Such a file is a program: only files that the user names are opened."""

import warnings
from pathlib import Path
from typing import Any

import torch

from data.errors import ReelflowError


class TorchScriptError(ReelflowError, ValueError):
    """A file that is missing or holds no network; the message is the reason, without the file's name."""


def load_torchscript(path: Path, device: torch.device) -> Any:  # noqa: ANN401 - torch's ScriptModule
    """The network in a file, in evaluation mode, with constant weights. The code in the file is run when it is called.

    Raises:
        TorchScriptError: there is no such file, or it holds no TorchScript network.
    """
    if not path.is_file():
        raise TorchScriptError("there is no such file; give that of a TorchScript network")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # in favour of formats with less reach
            network = torch.jit.load(path, map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise TorchScriptError(f"it holds no TorchScript network: {reason}") from error
    network = network.eval()
    for weight in network.parameters():
        weight.requires_grad_(False)
    return network


def last_line(error: RuntimeError) -> str:
    """What went wrong in the code of a TorchScript network: the last line of its error that is not empty."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no reason given")[:200]
