"""Readers: the official files come through whole; wrong ones are named by file, record and key."""

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsvlp.data import check
from dsvlp.data.dataset import Dataset
from dsvlp.data.readers import coco, nlvr, pairs, webdataset
from dsvlp.data.readers.base import inside
from dsvlp.data.readers.coco_tables import TABLES
from dsvlp.data.writer import Options, write
from dsvlp.errors import DataError
from tests.data.raw_files import encoded, make_pictures, pixels, real

QUIET = Options(processes=1, progress=False)


def annotations(name: str) -> Path:
    return real("coco_mini", "annotations", name)


def read_mini(**options: Any) -> coco.Reader:
    return coco.read(annotations("captions_val2017.json"), real("coco_mini", "val2017"), **options)


def test_coco_mini_comes_through_with_captions_boxes_and_maps(tmp_path: Path) -> None:
    instances, panoptic = annotations("instances_val2017.json"), annotations("panoptic_val2017.json")
    manifest = write(read_mini(instances=instances, panoptic=panoptic), tmp_path / "a.beton", QUIET)
    assert (manifest.images, manifest.samples, manifest.boxes_images, manifest.maps) == (85, 425, 25, 27)
    objects = json.loads(instances.read_text())["annotations"]
    crowds = sum(record["iscrowd"] for record in objects)
    assert manifest.skipped.counts == {"crowd box": crowds} and manifest.normalised.counts == {}
    dataset = Dataset.open(tmp_path / "a.beton")
    captions = json.loads(annotations("captions_val2017.json").read_text())["annotations"]
    right: dict[str, list[str]] = {}
    for record in captions:
        right.setdefault(f"{record['image_id']:012d}.jpg", []).append(record["caption"])
    boxes = 0
    for stored in check.rows(dataset):
        id = dataset.image_id(stored.row)
        assert stored.jpeg == real("coco_mini", "val2017", id).read_bytes()
        first, end = dataset.first_sample[stored.row : stored.row + 2]
        assert dataset.texts(dataset.samples["text"][first:end]) == right[id]
        boxes += len(stored.boxes_xyxy)
        if stored.map_png:  # our conversion of the panoptic PNG against the semantic one beside it
            found = np.asarray(Image.open(io.BytesIO(stored.map_png)))
            path = annotations("semantic_val2017") / Path(id).with_suffix(".png").name
            np.testing.assert_array_equal(found, np.asarray(Image.open(path)))
    assert boxes == len(objects) - crowds


def test_the_panoptic_table_is_the_official_one() -> None:
    value = json.loads(annotations("panoptic_val2017.json").read_text())["categories"]
    table = TABLES["coco_panoptic_133"]()
    assert dict(zip(table.ids, table.names, strict=True)) == {c["id"]: c["name"] for c in value}
    assert read_mini(panoptic=annotations("panoptic_val2017.json")).tables.segmentation == table


def test_the_stuff_tables_agree_but_for_their_ids() -> None:
    png, js = TABLES["coco_stuff_png"](), TABLES["coco_stuff_json"]()
    assert png.names == js.names and len(set(js.names)) == 182
    assert png.ids == tuple(i - 1 for i in js.ids) and (png.ignore, js.ignore) == (255, 0)


def test_maps_held_against_the_wrong_table_are_refused(tmp_path: Path) -> None:
    reader = read_mini(maps=annotations("semantic_val2017"), table="coco_stuff_json")
    with pytest.raises(DataError, match=r"\.png holds class id \d+.*coco_stuff_json"):
        write(reader, tmp_path / "a.beton", QUIET)
    with pytest.raises(DataError, match="one of coco_panoptic_133"):
        read_mini(maps=annotations("semantic_val2017"), table="nonsense")


@pytest.mark.parametrize("split", ["dev", "test"])
def test_nlvr_gives_the_six_pictures_of_each_true_sentence(split: str) -> None:
    file, images = real("nlvr1", f"{split}.json"), real("nlvr1", f"{split}.zip")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    reader = nlvr.read(file, images)
    samples = list(reader.samples())
    true = [r for r in records if r["label"] == "true"]
    assert [s.text for s in samples[::6]] == [r["sentence"] for r in true] and len(samples) == 6 * len(true)
    assert reader.skipped.counts == {"false sentence": len(records) - len(true)}
    with zipfile.ZipFile(images) as archive:
        for sample in samples[:: len(samples) // 20]:
            (image,) = sample.images
            with image.path.open("rb") as raw:
                raw.seek(image.offset)
                name = next(n for n in archive.namelist() if n.endswith("/" + image.id))
                assert raw.read(image.size) == archive.read(name)


def test_nlvr_from_the_unpacked_folder_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    lines = real("nlvr1", "dev.json").read_text().splitlines(keepends=True)[:3]
    file.write_text("".join(lines))
    with zipfile.ZipFile(real("nlvr1", "dev.zip")) as archive:
        for line in lines:
            record = json.loads(line)
            for k in range(6):
                archive.extract(
                    f"dev/images/{record['directory']}/dev-{record['identifier']}-{k}.png", tmp_path
                )
    unpacked = write(nlvr.read(file, tmp_path), tmp_path / "a.beton", QUIET)
    zipped = write(nlvr.read(file, real("nlvr1", "dev.zip")), tmp_path / "b.beton", QUIET)
    assert unpacked.files == zipped.files and unpacked.normalised.counts["PNG"] == unpacked.images


COCO = {
    "images": [{"id": 1, "file_name": "0000.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a", "bbox": [1, 2, 3, 4], "category_id": 5}],
    "categories": [{"id": 5, "name": "cat"}],
}


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    value = json.loads(json.dumps(COCO))
    change(value)
    path.write_text(json.dumps(value))
    return path


def _set(table: str, key: str, value: Any) -> Callable[[Any], None]:
    return lambda v: v[table][0].__setitem__(key, value)


def _drop(table: str, key: str) -> Callable[[Any], None]:
    return lambda v: v[table][0].pop(key)


WRONG_CAPTIONS = [
    (lambda v: v.pop("images"), r"c\.json has no key 'images'"),
    (lambda v: v.update(annotations={}), r"c\.json: annotations = .* is a dict.*list"),
    (_drop("images", "file_name"), r"c\.json: images\[0\] has no key 'file_name'"),
    (_drop("annotations", "caption"), r"c\.json: annotations\[0\] has no key 'caption'"),
    (_set("annotations", "caption", 7), r"annotations\[0\]: caption = '7' is a int.*str"),
    (_set("annotations", "caption", None), r"annotations\[0\]: caption = 'None'"),
    (_set("annotations", "image_id", 2), r"annotations\[0\]: image_id 2 is not among"),
    (_set("annotations", "image_id", True), r"annotations\[0\]: image_id = 'True' is a bool"),
    (lambda v: v["images"].append({"id": 1, "file_name": "b.jpg"}), r"images\[1\]: id 1 is 'b.jpg' here"),
    (lambda v: v.update(images=[3]), r"images\[0\] is a int"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_CAPTIONS)
def test_a_wrong_captions_json_is_named_by_record_and_key(
    tmp_path: Path, change: Callable, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        coco.read(edited(tmp_path / "c.json", change), tmp_path)


WRONG_INSTANCES = [
    (_set("annotations", "bbox", [1, 2, 3]), r"annotations\[0\]: bbox = \[1, 2, 3\].*four numbers"),
    (_set("annotations", "bbox", [1, 2, 3, "4"]), "four numbers"),
    (_set("annotations", "bbox", [1, 2, 3, float("nan")]), "four numbers"),
    (_set("annotations", "bbox", [10**400, 2, 3, 4]), "four numbers"),
    (_set("annotations", "bbox", [1, 2, 1e300, 4]), "four numbers"),
    (_set("categories", "id", 1 << 16), r"i\.json: the category id 65536.*from 0 to 65535"),
    (_set("categories", "id", -1), "category id -1"),
    (lambda v: v["categories"].append({"id": 5, "name": "other"}), r"categories\[1\]: id 5 is 'other' here"),
    (_set("annotations", "category_id", 6), r"annotations\[0\]: category_id 6 is unknown"),
    (_set("categories", "name", 6), r"categories\[0\]: name"),
    (lambda v: v.update(categories=[]), "categories is empty"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_INSTANCES)
def test_a_wrong_instances_json_is_named_by_record_and_key(
    tmp_path: Path, change: Callable, message: str
) -> None:
    captions = edited(tmp_path / "c.json", lambda v: None)
    with pytest.raises(DataError, match=message):
        coco.read(captions, tmp_path, instances=edited(tmp_path / "i.json", change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00\xff", b"[" * 100000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.json"):
        coco.read(tmp_path / "c.json", tmp_path)


def test_a_caption_that_is_not_utf8_is_counted_not_fatal(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    value = json.dumps(
        {**COCO, "annotations": [{"image_id": 1, "caption": c} for c in ("good", "caf\u00e9")]}
    )
    (tmp_path / "c.json").write_bytes(value.replace("\\u00e9", "\u00e9").encode("latin1"))
    manifest = write(coco.read(tmp_path / "c.json", tmp_path), tmp_path / "a.beton", QUIET)
    assert manifest.samples == 1 and manifest.skipped.counts == {"text not UTF-8": 1}


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "link/x.jpg", "..\\x.jpg", "", "a\0b", "\ud800"]
)
def test_a_file_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"record 3.*leaves"):
        inside(folder, name, "record 3")
    captions = edited(tmp_path / "c.json", _set("images", "file_name", name))
    with pytest.raises(DataError, match="leaves"):
        list(coco.read(captions, folder).samples())


def test_csv_reads_quoted_captions_and_several_a_picture(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbfid,image,caption\n1,0000.jpg,"two, with\nline"\n2,0001.jpg,b\n\n'
        b"3,0000.jpg,caf\xe9\n4,0001.jpg," + b"x" * 200_000 + b"\n"
    )
    manifest = write(pairs.read_csv(tmp_path / "t.csv"), tmp_path / "a.beton", QUIET)
    dataset = Dataset.open(tmp_path / "a.beton")
    assert dataset.texts(range(dataset.samples_count)) == ["two, with\nline", "b"]
    assert manifest.skipped.counts == {"text not UTF-8": 1, "text above 4096 characters": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'image'"),
        ("picture,caption\n", "no column 'image'"),
        ("image,caption\na.jpg\n", r"line 2 has 1 columns"),
        ('image,caption\na.jpg,"open\n', r"line 2"),
        ("image,caption\n../a.jpg,b\n", r"line 2.*leaves"),
    ],
)
def test_a_wrong_csv_is_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        list(pairs.read_csv(tmp_path / "t.csv").samples())


def test_a_folder_is_read_with_the_texts_beside_the_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path / "in" / "deep", 2)
    (tmp_path / "in" / "deep" / "0000.txt").write_text("one\ntwo\n")
    manifest = write(pairs.read_folder(tmp_path / "in"), tmp_path / "a.beton", QUIET)
    assert (manifest.images, manifest.samples) == (1, 2)
    assert manifest.skipped.counts == {"picture without a text file": 1}
    assert Dataset.open(tmp_path / "a.beton").image_id(0) == "deep/0000.jpg"
    with pytest.raises(DataError, match="holds no picture"):
        pairs.read_folder(tmp_path / "a.beton")


def make_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_reads_pictures_in_place(tmp_path: Path) -> None:
    picture, png = encoded(pixels(1)), encoded(pixels(2), "PNG")
    members = {"d/a.jpg": picture, "d/a.txt": b"first\n", "d/b.v1.png": png, "d/c.png": png}
    one = make_tar(tmp_path / "0.tar", {**members, "d/c.json": b'{"caption": "third"}'})
    two = make_tar(tmp_path / "1.tar", {"d/a.txt": b"again", "d/a.jpg": picture})
    manifest = write(webdataset.read([one, two]), tmp_path / "a.beton", QUIET)
    dataset = Dataset.open(tmp_path / "a.beton")
    assert [dataset.image_id(row) for row in range(3)] == ["0.tar/d/a", "0.tar/d/c", "1.tar/d/a"]
    assert dataset.texts(range(3)) == ["first", "third", "again"]
    assert next(check.rows(dataset)).jpeg == picture
    assert manifest.skipped.counts == {"key without a picture or caption": 1}


def test_a_wrong_tar_is_refused(tmp_path: Path) -> None:
    picture = encoded(pixels(1))
    for name in ("../a.jpg", "/a.jpg"):
        with pytest.raises(DataError, match="leaves the archive"):
            list(webdataset.read([make_tar(tmp_path / "t.tar", {name: picture})]).samples())
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    whole = make_tar(tmp_path / "w.tar", {"a.txt": b"t", "a.jpg": picture * 20}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:3000])
    (tmp_path / "zip.tar").write_bytes(b"PK\3\4" + os.urandom(2000))
    for name in ("link.tar", "cut.tar", "zip.tar"):
        with pytest.raises(DataError, match=name):
            list(webdataset.read([tmp_path / name]).samples())


@pytest.mark.parametrize("damage", ["cut at a member's end", "cut in a header", "damaged header"])
def test_a_tar_that_ends_before_its_end_mark_is_refused(tmp_path: Path, damage: str) -> None:
    """Python's tarfile takes each of these for the end of the archive: the rest would be lost silently."""
    members = {f"{key}{suffix}": b"x" * 500 for key in "ab" for suffix in (".jpg", ".txt")}
    whole = make_tar(tmp_path / "t.tar", members).read_bytes()
    second = 2048  # each member is a header and a block of 512 bytes
    damaged = {
        "cut at a member's end": whole[:second],
        "cut in a header": whole[: second + 100],
        "damaged header": whole[:second] + b"\7" * 100 + whole[second + 100 :],
    }[damage]
    (tmp_path / "t.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"t\.tar is cut or damaged at byte {second}"):
        list(webdataset.read([tmp_path / "t.tar"]).samples())


def test_a_wrong_nlvr_line_is_named(tmp_path: Path) -> None:
    right = {"sentence": "s", "label": "true", "identifier": "1-0", "directory": "0"}
    wrong = [
        ("label", "maybe", "label = 'maybe'"),
        ("sentence", None, "sentence"),
        ("directory", "../..", "leaves"),
    ]
    for key, value, message in wrong:
        (tmp_path / "dev.json").write_text(
            json.dumps(right) + "\n" + json.dumps({**right, key: value}) + "\n"
        )
        with pytest.raises(DataError, match=f"line 2.*{message}"):
            list(nlvr.read(tmp_path / "dev.json", tmp_path).samples())
    with zipfile.ZipFile(tmp_path / "dev.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dev/images/0/dev-1-0-0.png", b"x" * 1000)
    with pytest.raises(DataError, match="Unpack the archive"):
        nlvr.read(tmp_path / "dev.json", tmp_path / "dev.zip")
    (tmp_path / "dev.zip").write_bytes((tmp_path / "dev.zip").read_bytes()[:50])
    with pytest.raises(DataError, match="not a whole zip"):
        nlvr.read(tmp_path / "dev.json", tmp_path / "dev.zip")
