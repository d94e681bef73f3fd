"""What machines can do at best: the denominators of MFU, each with the vendor's own figure.

Peaks are dense matrix products at the precision that training would use on that card: bfloat16,
or float16 where the card has no bfloat16 (V100). A CPU has no entry: its peak is measured where
MFU is asked for, see `peak_flops`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A kind of accelerator.

    Attributes:
        name: its usual name.
        peak_flops: dense FLOP/s of `precision`, without sparsity, from the vendor's data sheet.
        precision: "bf16" or "fp16".
    """

    name: str
    peak_flops: float
    precision: str = "bf16"


# Matched in this order as words of the name that the driver gives, e.g. "NVIDIA H100 80GB HBM3".
DEVICES = (
    Device("H200", 989e12),
    Device("GH200", 989e12),
    Device("H100 PCIe", 756e12),
    Device("H100 NVL", 835e12),
    Device("H100", 989e12),
    Device("A100", 312e12),
    Device("A40", 149.7e12),
    Device("A10", 125e12),
    Device("L40S", 362e12),
    Device("L4", 121e12),
    Device("RTX 3090", 71e12),
    Device("RTX 4090", 165.2e12),
    Device("V100", 125e12, "fp16"),
)


def find(name: str) -> Device | None:
    """Returns the entry of a device string such as `torch.cuda.get_device_name()`, None if unknown."""
    words = name.replace("-", " ").upper().split()
    for device in DEVICES:
        if all(word in words for word in device.name.upper().split()):
            return device
    return None


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
