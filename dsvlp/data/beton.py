"""The parts of FFCV that the project uses, without the effect of their import.

Importing FFCV sets torch's global thread count to 1 (`ffcv.pipeline.compiler`); here it is put back.
Every other file takes FFCV's names from this one.
"""

import torch

_THREADS = torch.get_num_threads()

from ffcv.fields.base import ARG_TYPE, Field  # noqa: E402
from ffcv.memory_allocator import MemoryAllocator  # noqa: E402
from ffcv.pipeline import PipelineSpec  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.graph import Graph  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.types import (  # noqa: E402
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter, handle_sample  # noqa: E402

torch.set_num_threads(_THREADS)

__all__ = [
    "ALLOC_TABLE_TYPE",
    "ARG_TYPE",
    "CURRENT_VERSION",
    "MIN_PAGE_SIZE",
    "AllocationQuery",
    "Compiler",
    "DatasetWriter",
    "Field",
    "FieldDescType",
    "Graph",
    "HeaderType",
    "MemoryAllocator",
    "Operation",
    "PipelineSpec",
    "Reader",
    "State",
    "get_metadata_type",
    "handle_sample",
]
