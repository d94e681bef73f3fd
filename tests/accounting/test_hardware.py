import pytest

from dsvlp.accounting import hardware


@pytest.mark.parametrize(
    ("driver", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
    ],
)
def test_names_that_drivers_give_are_found(driver, peak):
    assert hardware.peak_flops(driver) == peak


def test_an_unknown_device_has_only_its_measured_peak():
    assert hardware.peak_flops("cpu") is None
    assert hardware.peak_flops("cpu", measured=2e11) == 2e11


def test_mfu_and_hours_reproduce_the_specifications_table():
    """SVL: 117 GFLOP a pair, 75 M pairs, 30% of an H200 is 8.2 hours."""
    rate = 0.30 * 989e12 / 117e9
    assert hardware.mfu(rate, 117e9, 989e12) == pytest.approx(0.30)
    assert hardware.device_hours(75_000_000, rate) == pytest.approx(8.2, abs=0.05)
