"""The manifest of a features folder: which data set it belongs to, what stands in it, hashes. Torch-free.

X.features/
  manifest.json              see `FeatureManifest`; carries its own SHA-256
  features-00000.beton ...   FFCV files, see `layout`; row r of the folder is row r of the data set
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dsvlp.data import manifest as manifests
from dsvlp.data.manifest import FileRecord, Tally
from dsvlp.errors import DataError
from dsvlp.types import LabelTable

FORMAT = "features 1"
SUFFIX = ".features"
WHAT = "region features written by `dsvlp data features`"

Kind = Literal["float16", "int8"]


@dataclass(frozen=True)
class FeatureManifest:
    """What stands in `manifest.json`.

    Attributes:
        dataset: name of the data set that the rows belong to, for people.
        dataset_digest: its manifest's digest.
        source: what the regions came from, for people.
        detector: what found boxes, classes and confidences.
        backbone: what made the features.
        images: rows.
        objects: N, of every row.
        width: F.
        dtype: how features are stored; int8 with a scale for each object.
        table: the classes' label table, None where objects have none.
        shard_rows: rows of each file, in order.
        adjusted: what was not stored as it came, by reason: images with too few objects, clipped boxes.
        files: every other file, by name.
    """

    dataset: str
    dataset_digest: str
    source: str
    detector: str
    backbone: str
    images: int
    objects: int
    width: int
    dtype: Kind
    table: LabelTable | None
    shard_rows: tuple[int, ...]
    adjusted: Tally
    files: dict[str, FileRecord]
    format: str = FORMAT

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the manifest: what two folders of equal content share."""
        return str(self.to_json()["digest"])

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as JSON, its own digest included."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value["table"] = self.table and self.table.to_json()
        value["adjusted"] = asdict(self.adjusted)
        value["files"] = {name: asdict(record) for name, record in sorted(self.files.items())}
        value = json.loads(json.dumps(value))
        return {**value, "digest": manifests.digest(value)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FeatureManifest:
        """Returns the manifest that `to_json` wrote; raises KeyError or TypeError on another shape."""
        value = {key: item for key, item in value.items() if key != "digest"}
        value["table"] = value["table"] and LabelTable.from_json(value["table"])
        value["adjusted"] = Tally(**value["adjusted"])
        value["shard_rows"] = tuple(value["shard_rows"])
        value["files"] = {
            name: FileRecord(record["bytes"], tuple(record["blocks"]))
            for name, record in value["files"].items()
        }
        return cls(**value)

    def check_belongs(self, folder: Path, dataset: Path, digest: str) -> None:
        """Raises `DataError` where the features in `folder` are those of another data set.

        Args:
            folder: the features.
            dataset: the data set that they are to be read with.
            digest: its manifest's.
        """
        if self.dataset_digest != digest:
            raise DataError(
                f"{folder} holds the features of {self.dataset} ({self.dataset_digest[:12]}), not of "
                f"{dataset} ({digest[:12]})",
                "features made from just this data set: they are aligned with it by row",
                f"Make them: dsvlp data features {dataset} ...",
            )

    def check_fits(self, folder: Path, objects: int, width: int, classes: int | None) -> None:
        """Raises `DataError` where the features in `folder` are not those that a recipe is of.

        Args:
            folder: the features.
            objects: `model.objects`.
            width: `model.feature_width`.
            classes: `objectives.mop.classes`, None without that objective.
        """
        if (self.objects, self.width) != (objects, width):
            raise DataError(
                f"{folder} holds {self.objects} objects an image with features of width {self.width}",
                f"{objects} of width {width}, the recipe's model.objects and model.feature_width",
                f"Set model.objects={self.objects} and model.feature_width={self.width}, or make others",
            )
        if classes is not None and self.table is None:
            raise DataError(
                f"the objects of {folder} have no classes, which objectives.mop predicts",
                "features with classes",
                "Make them with a detector's classes, or set objectives.mop=false",
            )
        if classes is not None and self.table is not None and len(self.table.ids) > classes:
            raise DataError(
                f"{folder} has {len(self.table.ids)} classes ({self.table.name})",
                f"at most objectives.mop.classes = {classes}",
                f"Set objectives.mop.classes={len(self.table.ids)}",
            )


def shard_name(number: int) -> str:
    """Returns the file name of a shard."""
    return f"features-{number:05d}.beton"


def load(folder: Path) -> FeatureManifest:
    """Returns the manifest of a features folder.

    Raises:
        DataError: it is absent, damaged, or of another format.
    """
    if not folder.is_dir():
        raise DataError(
            f"there are no region features {folder}", f"a folder X{SUFFIX}, {WHAT}", "Check the path"
        )
    value = manifests.read(folder, FORMAT, WHAT)
    try:
        return FeatureManifest.from_json(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / manifests.NAME} is damaged: {error!r}", fix=manifests.AGAIN) from error
