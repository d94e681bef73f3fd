"""Draws a contact sheet of a data set: pictures with their boxes, regions and maps, and their texts.

As PNG (Pillow alone) or as one HTML file that holds its pictures.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsvlp.data.check import StoredValues, rows
from dsvlp.data.dataset import Dataset
from dsvlp.data.features.rows import NO_CLASS
from dsvlp.data.features.stored import Features
from dsvlp.errors import DataError
from dsvlp.seed import integers, key_of
from dsvlp.types import LabelTable

_SIDE, _GAP, _LINE, _COLUMNS = 256, 12, 13, 4
_TEXT_LINES = 7
_OBJECTS = 12  # of region features: more would hide the picture
_MAP_OPACITY = 0.45
_STYLE = "body{font:14px sans-serif;margin:2em}img{max-height:300px;margin:0 8px 0 0}small{color:#666}"


@dataclass(frozen=True)
class Card:
    """One image as it is shown: as it is, with its boxes, its regions, its map; its id and texts."""

    id: str
    pictures: list[Image.Image]
    texts: list[str]
    classes: list[str]


def show(dataset: Dataset, out: Path, count: int, first: int = 0, features: Features | None = None) -> None:
    """Writes the contact sheet of rows `first` to `first + count`, as the suffix of `out` says.

    Args:
        dataset: opened without its features, so that its boxes are its own.
        out: a .png or .html file.
        count: rows at most.
        first: the first row.
        features: whose most confident objects are drawn, on a picture of their own.

    Raises:
        DataError: the suffix is neither .png nor .html, or there is no such row.
    """
    if out.suffix not in (".png", ".html"):
        raise DataError(f"--out {out}", "a name that ends in .png or .html")
    if not 0 <= first < dataset.images:
        raise DataError(f"--first {first}", f"a row from 0 to {dataset.images - 1}")
    wanted = np.arange(first, min(first + count, dataset.images))
    cards = [card(dataset, stored, features) for stored in rows(dataset, wanted)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        sheet(cards).save(out)
    else:
        out.write_text(page(cards, dataset), encoding="utf-8")


def card(dataset: Dataset, stored: StoredValues, features: Features | None = None) -> Card:
    """Returns one image with everything that is known of it."""
    picture = Image.open(io.BytesIO(stored.jpeg)).convert("RGB")
    first, end = dataset.first_sample[stored.row : stored.row + 2]
    samples = range(int(first), int(end))
    texts = [_sample_text(dataset, number) for number in samples]
    pictures, classes = [picture], []
    if len(stored.boxes_xyxy) and dataset.boxes is not None:
        pictures.append(with_boxes(picture, stored.boxes_xyxy, stored.box_labels, dataset.boxes))
    if features is not None:
        pictures.append(with_regions(picture, features, stored.row))
    if stored.map_png and dataset.segmentation is not None:
        ids = np.asarray(Image.open(io.BytesIO(stored.map_png)))
        pictures.append(with_map(picture, ids, dataset.segmentation))
        names = dict(zip(dataset.segmentation.ids, dataset.segmentation.names, strict=True))
        classes = [names[int(id)] for id in np.unique(ids) if int(id) in names]
    return Card(dataset.image_id(stored.row), pictures, texts, classes)


def _sample_text(dataset: Dataset, number: int) -> str:
    sample = dataset.samples[number]
    text = dataset.text(int(sample["text"]))
    if answers := dataset.answers_of(number):
        text += " " + " / ".join(answer for answer, _ in answers)
    return text if sample["label"] < 0 else f"{text} [{'true' if sample['label'] else 'false'}]"


def colour(id: int) -> tuple[int, int, int]:
    """Returns the colour of a class: always the same, never dark."""
    red, green, blue = (64 + integers(np.array([key_of(id)]), "show.colour", 3, 192)[0]).tolist()
    return red, green, blue


def with_boxes(
    picture: Image.Image, boxes_xyxy: np.ndarray, labels: np.ndarray, table: LabelTable
) -> Image.Image:
    """Returns the picture with boxes [K, 4] in pixels and their class names drawn on it."""
    names = dict(zip(table.ids, table.names, strict=True))
    drawn = picture.copy()
    pen, font = ImageDraw.Draw(drawn), _font(max(11, picture.width // 40))
    for box, label in zip(boxes_xyxy.tolist(), labels.tolist(), strict=True):
        pen.rectangle(box, outline=colour(label), width=max(2, picture.width // 200))
        pen.text((box[0] + 3, box[1] + 1), names[label], fill=colour(label), font=font)
    return drawn


def with_regions(picture: Image.Image, features: Features, row: int) -> Image.Image:
    """Returns the picture with the most confident objects of its region features drawn on it."""
    (about,) = features.about(np.array([row]))
    there = about[about["is_object"] != 0]
    chosen = there[np.argsort(-there["confidence"], kind="stable")[:_OBJECTS]]
    boxes = chosen["box"] * np.array([picture.width, picture.height] * 2)
    names = features.table.names if features.table is not None else ()
    classes = LabelTable("objects", (NO_CLASS, *range(len(names))), ("", *names))
    return with_boxes(picture, boxes, chosen["label"], classes)


def with_map(picture: Image.Image, ids: np.ndarray, table: LabelTable) -> Image.Image:
    """Returns the picture with each class of a map [H, W] tinted; what is unlabelled stays as it is."""
    values, inverse = np.unique(ids, return_inverse=True)
    colours = np.array([colour(int(value)) for value in values], np.float32)
    opacity = (
        np.where(values == table.ignore, 0, _MAP_OPACITY).astype(np.float32)[inverse].reshape(*ids.shape, 1)
    )
    tint = colours[inverse].reshape(*ids.shape, 3)
    tinted = np.asarray(picture) * (1 - opacity) + tint * opacity
    return Image.fromarray(tinted.astype(np.uint8))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def sheet(cards: list[Card]) -> Image.Image:
    """Returns the contact sheet as one picture, a card for each view of an image."""
    tiles = [(card, picture) for card in cards for picture in card.pictures]
    columns = min(_COLUMNS, len(tiles))
    cell = _SIDE + _GAP, _SIDE + (_TEXT_LINES + 1) * _LINE + _GAP
    lines = -(-len(tiles) // columns)
    paper = Image.new("RGB", (columns * cell[0] + _GAP, lines * cell[1] + _GAP), "white")
    pen = ImageDraw.Draw(paper)
    for number, (card, picture) in enumerate(tiles):
        x, y = _GAP + number % columns * cell[0], _GAP + number // columns * cell[1]
        small = picture.copy()
        small.thumbnail((_SIDE, _SIDE))
        paper.paste(small, (x, y))
        words = [line for text in card.texts for line in textwrap.wrap("- " + text, 44)]
        for k, line in enumerate([card.id[-44:], *words[:_TEXT_LINES]]):
            pen.text((x, y + _SIDE + k * _LINE), line, fill="gray" if k == 0 else "black", font=_font(11))
    return paper


def page(cards: list[Card], dataset: Dataset) -> str:
    """Returns the contact sheet as HTML that needs no other file."""
    about = f"{dataset.images} images, {dataset.samples_count} samples, from {dataset.manifest.source}"
    figures = "\n".join(_figure(card) for card in cards)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(dataset.path.name)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(dataset.path.name)}</h1><p>{html.escape(about)}</p>\n{figures}\n</html>\n"
    )


def _figure(card: Card) -> str:
    name = html.escape(card.id)
    images = "".join(f'<img alt="{name}" src="{_data_url(picture)}">' for picture in card.pictures)
    texts = "".join(f"<li>{html.escape(text)}</li>" for text in card.texts)
    classes = f"<small>map: {html.escape(', '.join(card.classes))}</small>" if card.classes else ""
    return f"<section><h3>{name}</h3>{images}<ul>{texts}</ul>{classes}</section>"


def _data_url(picture: Image.Image) -> str:
    out = io.BytesIO()
    small = picture.copy()
    small.thumbnail((640, 640))
    small.save(out, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
