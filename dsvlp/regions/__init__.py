"""Region features of a data set: objects by a detector, given boxes or a grid; features by a CNN.

torchvision's operators are declared first: timm and transformers import it.
"""

import dsvlp.vision  # noqa: F401
