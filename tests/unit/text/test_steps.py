from __future__ import annotations

import math

from medsft.core.text.steps import MEASURES, measured, step_line


def test_a_value_is_written_in_one_way():
    assert measured("loss", 1.25) == "1.2500"
    assert measured("lr", 2e-5) == "2.00e-05"
    assert measured("tokens_per_second", None) == "-"
    assert measured("grad_norm", math.nan) == "not finite"


def test_a_line_has_the_values_that_are_there():
    assert step_line({}) == ""
    assert step_line({"loss": None, "lr": None, "eta_seconds": 60.0}) == "loss not finite  1 min left"
    full = dict.fromkeys(MEASURES, 1.0)
    assert step_line(full) == "loss 1.0000  lr 1.00e+00  grad norm 1.000  1 tokens/s  1 B  1 s left"
