"""Detectors of the DETR family beside DETR: all load and give objects by the same path."""

import numpy as np

import dsvlp.vision  # noqa: F401  # isort: skip
import pytest
import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessor,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from dsvlp.data.rows import StoredRow
from dsvlp.regions.detector import Detector
from tests.data.raw_files import pixels

NAMES = {0: "cat", 1: "dog", 2: "kite"}
SIZE = {"shortest_edge": 96, "longest_edge": 192}
NOTHING = np.zeros(0, np.uint8)
ROW = StoredRow(NOTHING, 1, 1, np.zeros((0, 4), "<f4"), np.zeros(0, "<i4"), NOTHING)
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
SMALL = {
    **HEADS,
    **{"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 12, "id2label": NAMES},
    **{"encoder_layers": 1, "decoder_layers": 2},
}


def conditional():
    config = ConditionalDetrConfig(backbone="resnet18", **SMALL)
    return ConditionalDetrForObjectDetection(config), ConditionalDetrImageProcessor(size=SIZE)


def deformable():
    config = DeformableDetrConfig(backbone="resnet18", **SMALL)
    return DeformableDetrForObjectDetection(config), DeformableDetrImageProcessor(size=SIZE)


def real_time():
    widths = [8, 16, 24, 32]
    trunk = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=widths,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    widths = {"encoder_hidden_dim": 32, "encoder_in_channels": widths[1:], "decoder_in_channels": [32] * 3}
    config = RTDetrConfig(backbone_config=trunk, num_denoising=0, **SMALL, **widths)
    return RTDetrForObjectDetection(config), RTDetrImageProcessor(size={"height": 96, "width": 96})


def yolos():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = YolosConfig(image_size=[96, 96], num_detection_tokens=12, id2label=NAMES, **sizes)
    return YolosForObjectDetection(config), YolosImageProcessor(size=SIZE)


@pytest.mark.parametrize("made", [conditional, deformable, real_time, yolos])
def test_the_first_object_is_the_first_of_the_models_own_post_processing(made, tmp_path):
    torch.manual_seed(0)
    model, processor = made()
    with torch.no_grad():
        for parameter in model.parameters():  # as drawn, all queries are alike
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    detector = Detector.load(str(tmp_path), 8, torch.device("cpu"))
    shown = torch.from_numpy(pixels(1, 60, 80).copy()).permute(2, 0, 1)
    found = detector.find([shown], [ROW])
    with torch.inference_mode():
        given = model.eval()(**processor(images=[shown], return_tensors="pt"))
    theirs = processor.post_process_object_detection(given, threshold=0.0, target_sizes=[(1, 1)])[0]
    first = int(theirs["scores"].argmax())
    torch.testing.assert_close(found.confidences[0, 0], theirs["scores"][first])
    torch.testing.assert_close(found.boxes[0, 0], theirs["boxes"][first].clamp(0, 1))
    assert found.labels[0, 0] == theirs["labels"][first] and detector.table.names == tuple(NAMES.values())
    assert (found.confidences[0].diff() <= 0).all() and found.boxes.shape == (1, 8, 4)
