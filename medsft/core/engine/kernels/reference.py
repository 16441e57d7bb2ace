"""The switch that leaves everything to torch's own operations, to compare with or to rule the kernels out as a cause."""

from __future__ import annotations

import os
from functools import cache

REFERENCE_ONLY = "MEDSFT_REFERENCE_KERNELS"


@cache
def reference_only() -> bool:
    """Return whether this process was started with `MEDSFT_REFERENCE_KERNELS=1`."""
    return os.environ.get(REFERENCE_ONLY) == "1"
