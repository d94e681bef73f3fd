"""What a CNN's trunk costs: by formula where it is a ResNet, else counted by torch on the meta device.

Only the second needs torch and timm, and only for a recipe that names such a CNN.
"""

from __future__ import annotations

from typing import Any

from dsvlp import catalog
from dsvlp.accounting import resnet
from dsvlp.accounting.cost import Cost
from dsvlp.accounting.resnet import Grid
from dsvlp.errors import RecipeError


def trunk(name: str, image: Grid) -> tuple[Cost, int]:
    """Returns the cost for one image without classifier, and the channels of the last map.

    Args:
        name: timm's name, of a CNN of stride 32.
        image: height and width, pixels.

    Raises:
        RecipeError: there is no formula for it, and no torch to count it.
    """
    if name in resnet.SHAPES:
        cost, (_, channels) = resnet.trunk(name, image)
        return cost, channels
    found = counted(name, image)
    return Cost(found.parameters, found.forward), found.channels


def counted(name: str, image: Grid) -> Any:
    """Returns the `dsvlp.models.counted.Counted` of a CNN; raises as `trunk`."""
    try:
        count = catalog.CNN_COUNT.load()
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"model.image.name = {name!r} has no cost formula, and there is no {error.name} to count it with",
            f"one of {', '.join(resnet.SHAPES)}, or a machine with torch and timm",
        ) from error
    return count(name, *image)
