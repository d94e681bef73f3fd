"""The systems' models. torchvision's operators are declared first: timm and transformers import it."""

import dsvlp.vision  # noqa: F401
