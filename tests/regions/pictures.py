"""A small data set of drawn pictures, and detectors that know nothing, as folders."""

from pathlib import Path

import torch

import dsvlp.vision  # noqa: F401  # isort: skip
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

from dsvlp.data.dataset import Dataset
from dsvlp.data.writer import Options, write
from tests.data.raw_files import make_pictures, reader

CLASSES = ("N/A", "person", "bicycle", "car", "dog")


def small_data(folder: Path, images: int = 40) -> Dataset:
    """Returns a data set; each second image has two boxes."""
    paths = make_pictures(folder / "pictures", images)
    write(reader(paths), folder / "a.beton", Options(processes=1, progress=False))
    return Dataset.open(folder / "a.beton")


def random_detr(folder: Path, queries: int = 12) -> Path:
    """Returns the folder of a tiny DETR with a drawn ResNet-18, saved as transformers saves."""
    torch.manual_seed(0)
    sizes = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32, "num_queries": queries}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    names = dict(enumerate(CLASSES))
    config = DetrConfig(backbone="resnet18", id2label=names, **sizes, **layers, **heads)
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder
