"""The types that cross folder borders: `Sample`s come in, `Batch`es flow, `States` come out, `Loss`es add up.

Legend: P pairs, I images, T texts, L text tokens, N image tokens, D width, H x W pixels, h x w grid.
Masks are True for what counts. Floor 0: torch is named for types only, never imported.

How the systems and tasks to come use `Batch` (nothing here is particular to SVL):

* **FIBER** reads the same batch through two views (`clean`, `masked`); its hard negatives are more
  (image, text) rows, of the batch and of what was `fetched` for it.
* **Pixel-BERT** batches are padded: `image_mask` says which pixels are picture.
* **SemVLP** has rows of objects in place of pixels: `images` [I, N, F + 4], `image_mask` [I, N].
* **VQA, GQA**: `texts` are questions, `labels` [P, answers] soft targets. **VCR**: four `pairs` that
  name one image, `labels` [P/4]. **NLVR2**: two successive `pairs` share one text, `labels` [P/2].
* **Captioning** reads `text_ids` causally. **Detection, grounding**: `boxes` per image, `labels`
  through the text builder's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

# Mean and deviation of red, green, blue in [0, 1], by which every image of a `Batch` is normalised.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Filter = Literal["bilinear", "bicubic"]
"""What an image is resized by, antialiased."""


Mode = Literal["single", "two", "halves"]
"""How SemVLP's shared transformer reads the pairs of a micro-batch: all as one stream, all as two, or
those at even places as one and those at odd places as two."""


@dataclass(frozen=True)
class ImageSource:
    """Where an image's bytes lie, and what is known of it beside its texts.

    Attributes:
        id: the image's name in its source, unique in a data set ("000000391895.jpg").
        path: the file; for a member of an archive, the archive.
        offset: first byte inside `path`; 0 for a plain file.
        size: bytes to read; None for the whole file.
        boxes_xyxy: float32 [K, 4] in pixels of the stored image, or None.
        box_labels: int32 [K] ids of the data set's box label table, or None.
        box_phrases: int32 [K, 3] (text ordinal of this image, first character, end), or None.
        map_path: a PNG of class ids of the image's size, or None.
        map_png: the same as bytes in memory, or None.
        map_segments: int64 [S, 2] (segment's number, class id) if `map_path` is a panoptic RGB PNG, or None.
    """

    id: str
    path: Path
    offset: int = 0
    size: int | None = None
    boxes_xyxy: "np.ndarray | None" = None
    box_labels: "np.ndarray | None" = None
    box_phrases: "np.ndarray | None" = None
    map_path: Path | None = None
    map_png: bytes | None = None
    map_segments: "np.ndarray | None" = None


@dataclass(frozen=True)
class Sample:
    """One training sample as a reader yields it: images, a text, a label.

    Attributes:
        task: "caption", "question" or "statement".
        images: one image, or two (NLVR2).
        text: the caption, question or statement as it stands in the source.
        answers: (answer, weight) pairs of a question; empty otherwise.
        label: the class of a statement (0 false, 1 true); -1 where there is none.
        where: file and record number, for messages.
    """

    task: str
    images: tuple[ImageSource, ...]
    text: str
    answers: tuple[tuple[str, float], ...] = ()
    label: int = -1
    where: str = ""


@dataclass(frozen=True)
class Fetched:
    """Images and texts of F past pairs, brought again for a micro-batch as possible negatives.

    An image and the text in the same place have nothing to do with each other. A place may be empty: then
    its rows are -1, its image is grey and its text has no word.

    Attributes:
        images: float32 [F, 3, H, W], augmented and normalised as a batch's.
        text_ids, text_mask, special_mask: [F, L], as a batch's.
        caption_ids, caption_mask: [F, L], the images' own texts, by which false negatives are known; no
            tower reads them.
        rows: int64 [F, 2] image rows in the data set: the image's, and that of the text's image.
        samples: int64 [F, 2] samples in the data set, the image's and the text's; -1 where none is named.
        places: int64 [F] places in the pool of the global batch.
        image_keys: int64 [F], 64-bit hash of (seed, step, the image's sample).
    """

    images: "Tensor"
    text_ids: "Tensor"
    text_mask: "Tensor"
    special_mask: "Tensor"
    caption_ids: "Tensor"
    caption_mask: "Tensor"
    rows: "Tensor"
    samples: "Tensor"
    places: "Tensor"
    image_keys: "Tensor"

    def to(self, device: "torch.device", non_blocking: bool = False) -> "Fetched":
        """Returns the same with every tensor on `device`."""
        moved = (getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self))
        return Fetched(*moved)


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the device. Every tensor's first size is I, T or P.

    Attributes:
        images: float32 [I, 3, H, W], normalised with ImageNet's mean and deviation; for a model of objects
            float16 [I, N, F + 4], an object's region feature and its box (left, top, right, bottom, as shares
            of the image).
        text_ids: int64 [T, L], padded with the tokenizer's padding id.
        text_mask: bool [T, L], True at real tokens ([CLS] and [SEP] among them).
        special_mask: bool [T, L], True at [CLS], [SEP] and padding: never masked out by MLM.
        pairs: int64 [P, 2], (image row, text row); always the true pairing until ITM's prepare.
        partner: int64 [P], text row that replaces the pair's own where `matched` is False: the text of
            another image, chosen in the global batch.
        matched: bool [P], drawn by the loader from (seed, step, position), half of them False.
        weight: float32 [P], 1 for pairs that count, 0 for repeats that fill a group and for padding
            of the last evaluation batch.
        image_keys: int64 [I], 64-bit hash of (seed, epoch, image id, the sample or group that brought it).
        pair_keys: int64 [P], 64-bit hash of (seed, epoch, sample id).
        image_mask: bool [I, H, W], True where there is picture; bool [I, N], True at objects; None where
            everything is.
        segmentation: int64 [I, H, W] contiguous class ids, -1 to ignore; None where no objective asks.
        boxes_cxcywh: float32 [I, K, 4] relative to the crop; padded; None where no objective asks.
        box_labels: int64 [I, K], -1 at padding and at boxes that the crop removed.
        mismatched: bool [P], True where ITM's prepare put another image's text into this view; None while
            every pair of the view is a true one.
        labels: the task's labels, see the module's docstring; in pre-training int64 [P], the class of the
            pair's own answer, -1 where it has none; None where no objective asks.
        samples: int64 [P] ids in the data set's sample index: names for messages and scores, never
            used in arithmetic.
        rows: int64 [I] image rows in the data set.
        fetched: past pairs' images and texts, for ITM's negatives; None where no objective asks.
        object_labels: int64 [I, N] contiguous classes that the detector gave, -1 where there is none; None
            where there are no objects.
        object_confidences: float32 [I, N] of the detector, in [0, 1]; None where there are no objects.
        mode: how a model of two readings takes these pairs, the same on all ranks; None: as in inference.
    """

    images: "Tensor"
    text_ids: "Tensor"
    text_mask: "Tensor"
    special_mask: "Tensor"
    pairs: "Tensor"
    partner: "Tensor"
    matched: "Tensor"
    weight: "Tensor"
    image_keys: "Tensor"
    pair_keys: "Tensor"
    image_mask: "Tensor | None" = None
    segmentation: "Tensor | None" = None
    boxes_cxcywh: "Tensor | None" = None
    box_labels: "Tensor | None" = None
    mismatched: "Tensor | None" = None
    labels: "Tensor | None" = None
    samples: "Tensor | None" = None
    rows: "Tensor | None" = None
    fetched: "Fetched | None" = None
    object_labels: "Tensor | None" = None
    object_confidences: "Tensor | None" = None
    mode: Mode | None = None

    def to(self, device: "torch.device") -> "Batch":
        """Returns the batch with every tensor on `device`; the copy does not wait for the host."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if getattr(self, f.name) is not None and f.name != "mode"
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class States:
    """Hidden states of one stream.

    Attributes:
        tokens: [B, N, D].
        mask: bool [B, N], True at real tokens.
        maps: feature maps [B, C, h, w], finest first; the image tower's only.
    """

    tokens: "Tensor"
    mask: "Tensor"
    maps: tuple["Tensor", ...] = ()


@dataclass(frozen=True)
class Encoded:
    """What a model returns. `fuse` fills all three, the unimodal encoders one each.

    Attributes:
        image: image states; after fusion those of the fused image stream.
        text: text states; after fusion those of the fused text stream.
        pooled: [B, D], the joint feature that ITM and the tasks' heads read.
    """

    image: "States | None" = None
    text: "States | None" = None
    pooled: "Tensor | None" = None


@dataclass(frozen=True)
class Loss:
    """A sum and the count that divides it: whoever knows the world divides.

    Attributes:
        sum: float32 scalar with gradient, summed over this micro-batch's targets.
        count: float32 scalar, number (or weight) of targets in this micro-batch.
        metrics: name -> (sum, count), detached float32 scalars.
        predictions: detached predicted classes in the layout of the targets, for pictures and texts; None
            where there is nothing to show.
        drawn: int64 [N, 2] (image row, text row) of the mismatched pairs that the objective drew itself, as
            `Passes.ask` numbers them, for pictures; None where it drew none. They are the last N of
            `predictions`.
    """

    sum: "Tensor"
    count: "Tensor"
    metrics: dict[str, tuple["Tensor", "Tensor"]] = field(default_factory=dict)
    predictions: "Tensor | None" = None
    drawn: "Tensor | None" = None


@dataclass(frozen=True)
class LabelTable:
    """Stored id -> class: `ids[i]` is the stored id of class i, `names[i]` its name.

    Attributes:
        name: the table's name ("coco_panoptic_133").
        ids: stored ids in the order of the contiguous classes.
        names: class names, same order.
        ignore: the stored id that means unlabelled, or None.
    """

    name: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    ignore: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the table as JSON; `from_json` reads it back."""
        return {"name": self.name, "ids": list(self.ids), "names": list(self.names), "ignore": self.ignore}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "LabelTable":
        """Returns the table that `to_json` wrote."""
        return cls(value["name"], tuple(value["ids"]), tuple(value["names"]), value["ignore"])


_TABLES = ("segmentation", "boxes", "objects", "answers")


@dataclass(frozen=True)
class DataFacts:
    """What a system must know of its data before it is built. Saved with every checkpoint and export.

    Attributes:
        vocabulary: number of token ids of the tokenizer (at most the model's vocabulary).
        pad_id, cls_id, sep_id, mask_id: the tokenizer's special ids.
        segmentation: the map's label table, None where the data has no maps.
        boxes: the boxes' label table, None where the data has none.
        objects: the label table of region features' classes, None where the data has none.
        feature_width: F of the region features, 0 where the data has none.
        answers: the answers of questions as classes, None where the data has none.
    """

    vocabulary: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    segmentation: LabelTable | None = None
    boxes: LabelTable | None = None
    objects: LabelTable | None = None
    feature_width: int = 0
    answers: LabelTable | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the facts as JSON; `from_json` reads them back."""
        tables = {name: getattr(self, name) for name in _TABLES}
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in tables}
        return out | {name: table and table.to_json() for name, table in tables.items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DataFacts":
        """Returns the facts that `to_json` wrote."""
        tables = {
            name: value[name] and LabelTable.from_json(value[name]) for name in _TABLES if name in value
        }
        return cls(**{**value, **tables})
