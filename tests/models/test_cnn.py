"""The CNN trunk: what timm must bring, its layout in memory, its statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsvlp import config
from dsvlp.errors import RecipeError
from dsvlp.layers.batch_norm import SyncBatchNorm2d
from dsvlp.models.cnn import CNN, backbone
from dsvlp.recipe import CNN as Table


def make_cnn(**keys: object) -> CNN:
    torch.manual_seed(0)
    return CNN.from_recipe(config.validate(Table, {"name": "test_resnet", **keys}, "test"), pretrained=False)


def stirred(net: nn.Module) -> nn.Module:
    """Gives the norms any scale: timm starts the last of each block at 0, which hides the block."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
    return net


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet5000", "no model of this name"),
        ("vit_tiny_patch16_224", "makes (1, 197, 192)"),
        ("swin_tiny_patch4_window7_224", "makes (1, 7, 7, 768)"),
        ("inception_v3", "makes (1, 2048, 8, 8) of a picture of 299"),
        ("coatnet_0_rw_224", "reads no picture of 96 x 160"),
        ("halonet26t", "reads no picture of"),
        ("efficientvim_m1", "makes a list of a picture of 224 x 224"),
        ("inception_next_atto", "cannot be built without its pooling (Cannot disable pooling)"),
    ],
)
def test_a_backbone_that_is_no_cnn_of_stride_32_is_refused_with_names_of_others(
    name: str, reason: str
) -> None:
    with pytest.raises(RecipeError) as error:
        backbone(name)
    assert reason in str(error.value)
    assert "resnet50" in str(error.value) and "resnext101_32x8d" in str(error.value)


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext101_32x8d", "convnext_base", "resnet10t", "dla34", "skresnet18"]
)
def test_named_backbones_have_stride_32(name: str) -> None:
    with torch.device("meta"):
        net = CNN(config.validate(Table, {"name": name}, "test"))
        assert net(torch.empty(2, 3, 96, 160)).shape == (2, net.width, 3, 5)


@pytest.mark.parametrize(
    ("name", "batch_norm"), [("dla34", "frozen"), ("vgg16", "frozen"), ("dla34", "train")]
)
def test_a_cnn_that_timm_cannot_recompute_is_named_with_the_key(name: str, batch_norm: str) -> None:
    with torch.device("meta"):
        net = CNN(config.validate(Table, {"name": name, "batch_norm": batch_norm}, "test"))
    net.set_activation_checkpointing("none")
    with pytest.raises(RecipeError, match=rf"activation_checkpointing = 'full'.* cannot recompute {name}"):
        net.set_activation_checkpointing("full")


def test_the_resnet_50_trunk_has_the_published_parameter_count() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in backbone("resnet50").parameters()) == 23_508_032


def test_convolutions_see_channels_last() -> None:
    net, seen = make_cnn(), []
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net(torch.randn(2, 3, 64, 64))
    assert len(seen) > 8
    assert all(given.is_contiguous(memory_format=torch.channels_last) for given in seen)


def ran(batch_norm: str, mode: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns gradients and statistics after one backward."""
    net = make_cnn(batch_norm=batch_norm)
    stirred(net)
    net.set_activation_checkpointing(mode)
    net(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return gradients, {name: b.clone() for name, b in net.named_buffers() if "running" in name}


@pytest.mark.parametrize("batch_norm", ["frozen", "train", "sync"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_no_bit_of_gradients_or_statistics(batch_norm: str, mode: str) -> None:
    for whole, recomputed in zip(ran(batch_norm, "none"), ran(batch_norm, mode), strict=True):
        assert whole.keys() == recomputed.keys() != set()
        assert all(torch.equal(whole[name], recomputed[name]) for name in whole)


def test_recomputation_keeps_less() -> None:
    def kept(mode: str) -> int:
        net, size = make_cnn(), 0
        net.set_activation_checkpointing(mode)

        def pack(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(1, 3, 128, 128))
        return size

    assert kept("full") < kept("selective") < kept("none")


def test_frozen_statistics_stay_where_they_are_and_their_scale_is_trained() -> None:
    gradients, frozen = ran("frozen", "none")
    _, trained = ran("train", "none")
    assert all(statistics.unique().numel() == 1 for statistics in frozen.values())
    assert all(statistics.unique().numel() > 1 for statistics in trained.values())
    assert gradients["body.bn1.weight"].abs().max() > 0


def test_synchronised_norms_keep_names_and_weights() -> None:
    plain, synchronised = make_cnn(batch_norm="train"), make_cnn(batch_norm="sync")
    one, other = plain.state_dict(), synchronised.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    norms = [part for part in synchronised.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms and all(type(part) is SyncBatchNorm2d for part in norms)


def test_a_net_whose_norms_do_more_is_not_synchronised() -> None:
    with pytest.raises(RecipeError, match=r"BatchNormAct2d.*frozen"):
        make_cnn(name="test_efficientnet", batch_norm="sync")


def test_timm_may_not_recompute_where_statistics_would_count_twice() -> None:
    net = make_cnn(name="test_efficientnet", batch_norm="train")
    net.set_activation_checkpointing("none")
    with pytest.raises(RecipeError, match="twice"):
        net.set_activation_checkpointing("full")
    make_cnn(name="test_efficientnet").set_activation_checkpointing("full")
