"""What merging an adapter into rounded weights changes, and when that matters, in words.

The change that training made to a weight is often smaller than the step between two numbers of bf16 (1/256 of the weight), so
that rounding loses a part of it: of changes of the size 3e-5, merged into usual weights, 29 % of the entries were left, which
pointed in the direction of the whole change with a cosine of 0.74. What counts is what the model computes.
"""

from __future__ import annotations

import math

from medsft.core.engine.commands.verify import LogitDifference
from medsft.core.units import count, counted

_OTHER_CHOICES = 0.01
"""From this share of tokens on at which another one is the most likely, answers of a hundred tokens become others."""


def rounding_matters(difference: LogitDifference) -> bool:
    """Tell whether rounding changes what the model answers."""
    return not math.isfinite(difference.largest) or difference.other_choices >= _OTHER_CHOICES * difference.tokens


def rounding_note(difference: LogitDifference, dtype: str, *, over: str) -> str:
    """Return how far the merged model in `dtype` is from base and adapter; `over` says of what its tokens are."""
    share = f"{difference.other_choices / difference.tokens:.1%}"
    text = (
        f"Merged in {dtype}, a logit differs from that of base and adapter by {difference.mean:.2g} on average and "
        f"{difference.largest:.2g} at most, over {counted(difference.tokens, 'token')} {over}; after "
        f"{count(difference.other_choices)} of them ({share}) another token is the most likely one."
    )
    if not rounding_matters(difference):
        return text
    return (
        f"{text} That changes answers: use the adapter with its base, or merge it in fp32 (medsft merge ADAPTER --base BASE "
        "--to DIR --dtype fp32)."
    )
