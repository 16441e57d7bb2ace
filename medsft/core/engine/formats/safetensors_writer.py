"""Writes files of safetensors one tensor at a time, in any order, so that no more than one is in memory.

The format (https://huggingface.co/docs/safetensors): length of the JSON as uint64, the JSON with offsets counted from its end,
the tensors. The JSON is filled up with blanks, so that tensors are aligned.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from typing import Any

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The types of weights by the names that they have in the files."""


def write_header(
    file: FileIO, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Write the head of a file, with `metadata` beside the tensors, and return where in the file each tensor begins."""
    kind = next(name for name, known in SAFETENSORS_DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in shapes}


def write_tensor(file: int, offset: int, tensor: Tensor) -> None:
    """Write the content of a tensor on the CPU at an offset of an open file."""
    data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    while data:  # one call writes at most 2 GiB
        written = os.pwrite(file, data, offset)
        offset, data = offset + written, data[written:]
