"""Objects by a detector of transformers' DETR family: boxes, classes and confidences of its queries.

Any that `AutoModelForObjectDetection` knows and that gives logits and boxes a query: DETR, Conditional and
Deformable DETR, RT-DETR, D-FINE, YOLOS. None needs a compiled operator.

Legend: I images, Q queries, N objects, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from dsvlp.data.rows import StoredRow
from dsvlp.errors import DataError
from dsvlp.regions.alike import alike
from dsvlp.regions.objects import Objects
from dsvlp.types import LabelTable

log = logging.getLogger(__name__)

_TRIAL_SIDE = 64
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_REMEDY = "Give a hub name or a folder of `save_pretrained`, e.g. facebook/detr-resnet-101"


class Detector:
    """The N most confident queries of a picture, each with its likeliest class.

    A box counts once, as in bottom-up features, where per-class non-maximum suppression and the best class
    of each box do the same for a detector that proposes a thing many times over. Queries are trained to
    propose it once (by matching), and 100 of DETR's 100 are asked for: nothing is suppressed.

    Computes in float32: bfloat16 has 8 bits for a box's edges, a pixel or two of a picture.

    Args:
        model, processor: transformers'.
        name: what they were loaded from.
        objects: N.
        device: where the model goes.

    Attributes:
        table: the classes, from the model's `id2label`.

    Raises:
        DataError: it has fewer queries, or gives no logits and boxes as the DETR family does.
    """

    annotations: frozenset[str] = frozenset()

    def __init__(self, model: Any, processor: Any, name: str, objects: int, device: torch.device) -> None:
        self._model, self._processor, self._objects = model.to(device).eval(), processor, objects
        names = tuple(model.config.id2label[number] for number in range(model.config.num_labels))
        self.table = LabelTable(Path(name).name, tuple(range(len(names))), names)
        grey = torch.full((3, _TRIAL_SIDE, _TRIAL_SIDE), 128, dtype=torch.uint8, device=device)
        confidences, _, _ = self._judged([grey], name)
        if confidences.shape[1] < objects:
            raise DataError(
                f"the detector {name} finds {confidences.shape[1]} objects in a picture",
                f"the {objects} of --objects",
                f"Use --objects {confidences.shape[1]}, or a detector with more queries",
            )

    @classmethod
    def load(cls, name: str, objects: int, device: torch.device) -> Detector:
        """Returns the detector of a folder or hub name; safetensors alone are read.

        Raises:
            DataError: there is none, its weights are a pickle or not all there, or it is no detector.
        """
        if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
            raise DataError(f"there is no folder {name} of a detector", "one of the DETR family", _REMEDY)
        try:
            model, report = AutoModelForObjectDetection.from_pretrained(
                name, use_safetensors=True, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(name, backend="torchvision")
        except (OSError, ValueError, RuntimeError) as error:
            raise _unusable(name, error) from error
        if report["missing_keys"]:
            raise DataError(
                f"the detector {name} lacks the weights {', '.join(sorted(report['missing_keys'])[:4])} ...",
                "a checkpoint of all of the model",
                _REMEDY,
            )
        return cls(model, processor, name, objects, device)

    @torch.inference_mode()
    def find(self, pictures: Sequence[Tensor], rows: Sequence[StoredRow]) -> Objects:
        """Returns the most confident objects of pictures uint8 [3, H, W]."""
        confidences, labels, boxes = self._judged(pictures, self.table.name)
        real = (boxes[..., 2:] > boxes[..., :2]).all(-1)  # [I, Q]
        chosen = confidences.masked_fill(~real, -1).topk(self._objects, sorted=True).indices
        mask = real.gather(1, chosen)
        return Objects(
            boxes.gather(1, chosen[..., None].expand(-1, -1, 4)),
            labels.gather(1, chosen).masked_fill(~mask, -1),
            confidences.gather(1, chosen) * mask,
            mask,
        )

    def _judged(self, pictures: Sequence[Tensor], name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns of every query: confidence float32 [I, Q], class int64 [I, Q], box [I, Q, 4] as shares.

        Pictures that the processor makes equally large go through the model together, never padded.
        """
        inputs = [self._prepared(picture) for picture in pictures]
        out: list[Any] = [None] * len(inputs)
        for places in alike([tuple(each["pixel_values"].shape) for each in inputs]):
            joined = {key: torch.cat([inputs[k][key] for k in places]) for key in inputs[places[0]]}
            given = self._model(**joined)
            logits, boxes = getattr(given, "logits", None), getattr(given, "pred_boxes", None)
            if logits is None or boxes is None or logits.shape[:2] != boxes.shape[:2]:
                raise DataError(
                    f"the detector {name} gives no logits and boxes for each query",
                    "a model of the DETR family",
                    _REMEDY,
                )
            parts = zip(*likeliest(logits, len(self.table.names), name), corners(boxes), strict=True)
            for place, part in zip(places, parts, strict=True):
                out[place] = part
        confidences, labels, shares = (torch.stack(column) for column in zip(*out, strict=True))
        return confidences, labels, shares

    def _prepared(self, picture: Tensor) -> dict[str, Tensor]:
        made = self._processor(images=[picture], input_data_format="channels_first", return_tensors="pt")
        return {key: made[key].to(picture.device) for key in ("pixel_values", "pixel_mask") if key in made}


def likeliest(logits: Tensor, classes: int, name: str) -> tuple[Tensor, Tensor]:
    """Returns each query's confidence and class [I, Q].

    Args:
        logits: [I, Q, C + 1], the last for "no object" (softmax: DETR, YOLOS), or [I, Q, C] (sigmoid: all
            trained by focal loss).
        classes: C.
        name: the detector, for the message.

    Raises:
        DataError: they are of neither width.
    """
    width = logits.shape[-1]
    if width not in (classes, classes + 1):
        raise DataError(
            f"the detector {name} gives {width} logits a query and names {classes} classes",
            "one a class, or one more for no object",
            _REMEDY,
        )
    shares = logits.float().sigmoid() if width == classes else logits.float().softmax(-1)[..., :-1]
    confidences, labels = shares.max(-1)
    return confidences, labels


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """Returns left, top, right, bottom [..., 4] inside the picture, all as shares of it."""
    centre, size = boxes_cxcywh.float().split(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)


def _unusable(name: str, error: Exception) -> DataError:
    folder = Path(name)
    pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind)) if folder.is_dir() else []
    if pickles and not any(folder.glob("*.safetensors")):
        return DataError(
            f"the detector {name} is the pickle {pickles[0]}, which may run any code when it is read",
            "weights as safetensors",
            "Convert them where you trust them: load there and `save_pretrained` again",
        )
    said = " ".join(str(error).split())[:300]
    return DataError(f"the detector {name} cannot be loaded: {said}", "one of the DETR family", _REMEDY)
