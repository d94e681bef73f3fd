"""What a GPU has used, by the driver's own counter (NVML): exact, free to ask, and there even if nobody
asked in between. Torch-free; the library comes with the driver, so nothing is installed for it.

Volta and newer have the counter. A GPU shared by MIG, another vendor's, or none has no number, and
none is made up. What the host, the network and the cooling use is not in it.
"""

from __future__ import annotations

import ctypes
import math

_LIBRARY = "libnvidia-ml.so.1"
_DONE = 0  # NVML_SUCCESS


class Meter:
    """Counts one GPU's joules from now on.

    Args:
        uuid: the GPU as NVML names it, "GPU-...": what CUDA_VISIBLE_DEVICES hides or renumbers has still
            the same name. None: no GPU.
    """

    def __init__(self, uuid: str | None) -> None:
        self._nvml, self._gpu = _find(uuid) if uuid is not None else (None, ctypes.c_void_p())
        self._start = self._read()

    def joules(self) -> float:
        """Returns the energy since the meter was made; NaN where NVML does not tell."""
        return self._read() - self._start

    def _read(self) -> float:
        if self._nvml is None:
            return math.nan
        millijoules = ctypes.c_ulonglong()
        code = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu, ctypes.byref(millijoules))
        return millijoules.value / 1000 if code == _DONE else math.nan


def _find(uuid: str) -> tuple[ctypes.CDLL | None, ctypes.c_void_p]:
    """Returns (NVML, its handle of the GPU); (None, ...) where either is missing."""
    gpu = ctypes.c_void_p()
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None, gpu
    if nvml.nvmlInit_v2() != _DONE:
        return None, gpu
    found = nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(gpu)) == _DONE
    return (nvml if found else None), gpu
