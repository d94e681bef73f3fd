"""What machines can do at best: the denominators of MFU, each with the vendor's own figure.

Peaks are dense matrix products at the precision that training would use on that card: bfloat16,
or float16 where the card has no bfloat16 (V100). A CPU has no entry: its peak is measured where
MFU is asked for, see `peak_flops`. Memory is the data sheet's number of gigabytes, taken as 10^9 bytes:
a driver shows some more. A link is one direction of NVLink, or of PCIe where the card has none.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsvlp.errors import RecipeError


@dataclass(frozen=True)
class Device:
    """A kind of accelerator.

    Attributes:
        name: its usual name.
        peak_flops: dense FLOP/s of `precision`, without sparsity, from the vendor's data sheet.
        memory: bytes.
        link: bytes/s to the other cards of its node, in one direction.
        precision: "bf16" or "fp16".
    """

    name: str
    peak_flops: float
    memory: float
    link: float
    precision: str = "bf16"


# Matched in this order as words of the name that the driver gives, e.g. "NVIDIA H100 80GB HBM3".
DEVICES = (
    Device("H200", 989e12, 141e9, 450e9),
    Device("GH200", 989e12, 96e9, 450e9),
    Device("H100 PCIe", 756e12, 80e9, 64e9),
    Device("H100 NVL", 835e12, 94e9, 300e9),
    Device("H100", 989e12, 80e9, 450e9),
    Device("A100 40GB", 312e12, 40e9, 300e9),
    Device("A100", 312e12, 80e9, 300e9),
    Device("A40", 149.7e12, 48e9, 32e9),
    Device("A10", 125e12, 24e9, 32e9),
    Device("L40S", 362e12, 48e9, 32e9),
    Device("L4", 121e12, 24e9, 32e9),
    Device("RTX 3090", 71e12, 24e9, 32e9),
    Device("RTX 4090", 165.2e12, 24e9, 32e9),
    Device("V100 16GB", 125e12, 16e9, 150e9, "fp16"),
    Device("V100", 125e12, 32e9, 150e9, "fp16"),
)


def find(name: str) -> Device | None:
    """Returns the entry of a device string such as `torch.cuda.get_device_name()`, None if unknown."""
    words = name.replace("-", " ").upper().split()
    for device in DEVICES:
        if all(word in words for word in device.name.upper().split()):
            return device
    return None


def named(name: str) -> Device:
    """Returns the entry that a person names, e.g. "h200" or "a100-40gb".

    Raises:
        RecipeError: no card is called so; all names are listed.
    """
    device = find(name)
    if device is None:
        names = ", ".join(known.name.lower().replace(" ", "-") for known in DEVICES)
        raise RecipeError(f"no GPU is called {name!r}", f"one of {names}")
    return device


def peak_flops(name: str, measured: float | None = None) -> float | None:
    """Returns the FLOP/s that MFU divides by.

    Args:
        name: the device string.
        measured: FLOP/s of a large matrix product, measured on this machine; used where the device
            has no entry, as every CPU. A share of a measured rate must be labelled so.
    """
    device = find(name)
    return device.peak_flops if device else measured


def mfu(samples_per_second: float, flop_per_sample: float, peak: float) -> float:
    """Returns the share of the peak that model FLOPs reach: samples/s x FLOP / peak."""
    return samples_per_second * flop_per_sample / peak


def device_hours(samples: float, samples_per_second_per_device: float) -> float:
    """Returns the GPU-hours (CPU-hours) that `samples` take at a rate per device."""
    return samples / (3600.0 * samples_per_second_per_device)
