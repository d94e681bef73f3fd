import ctypes
import math
import shutil
import subprocess
import time

import pytest

from dsvlp.accounting import energy
from dsvlp.accounting.energy import Meter


class NVML:
    """As NVML, with a counter of ours."""

    def __init__(self, known: bytes = b"GPU-1", counts: bool = True) -> None:
        self.known, self.counts, self.millijoules = known, counts, 7000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
        return 0 if uuid == self.known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, out: object) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0 if self.counts else 3


def test_joules_are_counted_from_the_meters_beginning(monkeypatch):
    nvml = NVML()
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: nvml)
    meter = Meter("GPU-1")
    assert meter.joules() == 0
    nvml.millijoules += 2500
    assert meter.joules() == 2.5


@pytest.mark.parametrize(
    ("nvml", "uuid"), [(NVML(), "GPU-2"), (NVML(), "MIG-1"), (NVML(counts=False), "GPU-1"), (NVML(), None)]
)
def test_what_is_not_measured_is_no_number(monkeypatch, nvml, uuid):
    monkeypatch.setattr(energy.ctypes, "CDLL", lambda name: nvml)
    assert math.isnan(Meter(uuid).joules())


def test_a_machine_without_the_driver_has_no_number(monkeypatch):
    monkeypatch.setattr(energy, "_LIBRARY", "libno-such-library.so.1")
    assert math.isnan(Meter("GPU-1").joules())


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no NVIDIA driver here")
def test_a_real_gpu_uses_between_ten_and_a_thousand_watts():
    listed = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    meter, begin = Meter(listed.stdout.split()[0]), time.monotonic()
    time.sleep(2)
    assert 10 < meter.joules() / (time.monotonic() - begin) < 1000
