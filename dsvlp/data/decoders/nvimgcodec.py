"""Decodes by NVIDIA's nvImageCodec, which answers for each image of a list alone.

Whole images only: its decoding of a JPEG's region crashes on H100. Its backend on the CPU is left out, so
that a file that no engine takes comes back to the strict decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nvidia import nvimgcodec
from torch import Tensor

_KINDS = (
    nvimgcodec.BackendKind.HW_GPU_ONLY,
    nvimgcodec.BackendKind.GPU_ONLY,
    nvimgcodec.BackendKind.HYBRID_CPU_GPU,
)


class Nvimgcodec:
    """Decodes by `nvimgcodec.Decoder`.

    Args:
        device: the GPU.
    """

    name = f"nvimgcodec {nvimgcodec.__version__}"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        kinds = [nvimgcodec.Backend(kind) for kind in _KINDS]
        self._decoder = nvimgcodec.Decoder(device_id=device.index or 0, backends=kinds)
        self._parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False)

    def decode(self, jpegs: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns RGB uint8 [3, H, W] for each, None for one that it cannot decode."""
        streams = [nvimgcodec.CodeStream(jpeg.numpy()) for jpeg in jpegs]
        current = torch.cuda.current_stream(self.device)
        images = self._decoder.decode(streams, params=self._parameters, cuda_stream=current.cuda_stream)
        current.synchronize()  # the caller's bytes must not change before they are copied
        return [None if image is None else torch.from_dlpack(image).permute(2, 0, 1) for image in images]
