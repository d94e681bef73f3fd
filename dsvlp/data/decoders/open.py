"""Chooses a decoding backend by its name in a recipe, and says what is wrong where it cannot work here."""

from __future__ import annotations

import importlib
from typing import cast

import numpy as np
import simplejpeg
import torch

from dsvlp.data.decode import CPUDecoder, Decoder, DeviceDecoder
from dsvlp.data.lane import Lane
from dsvlp.errors import DsvlpError, MissingDependency, RunError

BACKENDS = {
    "torchvision": (
        "dsvlp.data.decoders.torchvision:Torchvision",
        "install torchvision's build for this CUDA, which PyTorch's page 'Start locally' names",
    ),
    "torchcodec": ("dsvlp.data.decoders.torchcodec:Torchcodec", "pip install 'torchcodec>=0.16'"),
    "nvimgcodec": (
        "dsvlp.data.decoders.nvimgcodec:Nvimgcodec",
        "pip install 'nvidia-nvimgcodec-cu13[nvjpeg]>=0.9' (or -cu12, as torch.version.cuda says)",
    ),
}
"""Name in a recipe -> its class, and what brings its library."""

_ELSE = "or decode on the CPU: data.decoder=cpu"
_TRIAL_SIDE = 16


def open_decoder(name: str, device: torch.device) -> Decoder | DeviceDecoder:
    """Returns the backend `data.decoder` names, after it has decoded a JPEG on the device.

    Args:
        name: "cpu" or one of `BACKENDS`.
        device: this process's.

    Raises:
        MissingDependency: its library is not here, or does not load.
        RunError: there is no GPU, or the backend does not work on it.
    """
    if name == "cpu":
        return CPUDecoder()
    if device.type != "cuda":
        raise RunError(
            f"data.decoder = {name!r} decodes on a GPU: {why_no_gpu()}",
            "a CUDA device",
            f"`dsvlp doctor` says what is missing; {_ELSE}",
        )
    path, remedy = BACKENDS[name]
    module, _, kind = path.partition(":")
    try:
        decoder = cast(DeviceDecoder, getattr(importlib.import_module(module), kind)(device))
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependency(
            f"data.decoder = {name!r}: its library does not load: {_first_line(error)}",
            fix=f"{remedy}; {_ELSE}",
        ) from error
    return tried(decoder)


def tried(decoder: DeviceDecoder) -> DeviceDecoder:
    """Returns a backend that has decoded a small JPEG rightly.

    Raises:
        RunError: names what went wrong.
    """
    grey = np.full((_TRIAL_SIDE, _TRIAL_SIDE, 3), 200, np.uint8)
    jpeg = torch.frombuffer(bytearray(simplejpeg.encode_jpeg(grey)), dtype=torch.uint8)
    try:
        with Lane(decoder.device).open():  # torchvision remembers the device of its first call
            (pixels,) = decoder.decode([jpeg])
            wrong = "it gave nothing" if pixels is None else _difference(pixels)
    except RuntimeError as error:
        wrong = _first_line(error)
    if wrong:
        raise RunError(
            f"{decoder.name} cannot decode a JPEG on {decoder.device}: {wrong}",
            "a build for this CUDA and driver",
            f"`dsvlp doctor` lists the backends; choose another, {_ELSE}",
        )
    return decoder


def _difference(pixels: torch.Tensor) -> str:
    if pixels.dtype != torch.uint8 or pixels.shape != (3, _TRIAL_SIDE, _TRIAL_SIDE):
        return f"it gave {pixels.dtype} {tuple(pixels.shape)} for {_TRIAL_SIDE} x {_TRIAL_SIDE} pixels"
    return "" if bool((pixels.int() - 200).abs().max() <= 2) else "a grey picture came back in another grey"


def why_no_gpu() -> str:
    """Returns why torch has no CUDA device here; empty where it has one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # no driver, one too old, no device
        return _first_line(error)
    return ""


def states() -> dict[str, tuple[str, str]]:
    """Returns, for each backend, (what was found, what mends it: empty where nothing is to be done)."""
    found = {"cpu": (CPUDecoder.name, "")}
    absent = why_no_gpu()
    for name, (_, remedy) in BACKENDS.items():
        try:
            if absent:
                found[name] = f"not usable here: {absent}", ""
            else:
                found[name] = open_decoder(name, torch.device("cuda:0")).name, ""
        except DsvlpError as error:
            found[name] = error.found, remedy
    return found


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
