"""Intervals and tests against what others have published, or what R and scikit-learn give."""

from __future__ import annotations

import numpy as np
import pytest

from medsft.core.evaluation.statistics import (
    calibration,
    difference_interval,
    holm,
    macro_f1,
    mcnemar_p,
    mean_interval,
    recall_by_label,
    softmax,
    wilson_interval,
)

SLEEP = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0, 1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
"""`sleep$extra` of R"""


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_in_table_i_of_newcombe_1998(successes: int, trials: int, low: float, high: float) -> None:
    """Stat Med 17:857-872, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("gained", "lost", "p"), [(6, 16, 0.05248), (1, 7, 0.07031), (5, 5, 1.0), (0, 0, 1.0)])
def test_mcnemar_as_binom_test_of_r(gained: int, lost: int, p: float) -> None:
    """`binom.test(6, 22)`; the first two are Cavo 2012 and Bentur 2009 in Fagerland, Lydersen & Laake 2017, chapter 8."""
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained) == pytest.approx(p, rel=1e-3)


def test_difference_as_the_r_package_contingencytables() -> None:
    """`Wald_CI_BonettPrice_paired_2x2(cavo_2012)` gives -0.1195 to -0.0032 (its own tests)."""
    assert difference_interval(6, 16, 161) == pytest.approx((-0.1195, -0.0032), abs=5e-5)
    low, high = difference_interval(16, 6, 161)
    assert (low, high) == pytest.approx((0.0032, 0.1195), abs=5e-5)
    low, high = difference_interval(0, 0, 500)
    assert low == -high < 0  # models that never differ are still not known to be equal


def test_mean_as_t_test_of_r() -> None:
    """`t.test(sleep$extra)` gives 0.5955845 to 2.4844155, here a tenth of it."""
    assert mean_interval([value / 10 for value in SLEEP]) == pytest.approx((0.05955845, 0.24844155), abs=1e-6)


def test_a_mean_of_equal_shares_is_not_certain() -> None:
    """All of ten answers are right: as for their accuracy."""
    assert mean_interval([1.0] * 10) == wilson_interval(10, 10)
    assert mean_interval([0.0] * 10) == wilson_interval(0, 10)
    low, high = mean_interval([0.55] * 10)
    assert (low, high) == (wilson_interval(5, 10)[0], wilson_interval(6, 10)[1])
    assert mean_interval([0.1] * 3)[0] <= 0.1 <= mean_interval([0.1] * 3)[1]


def test_holm_as_p_adjust_of_r() -> None:
    """`p.adjust(c(0.01, 0.04, 0.03), "holm")`, and with ties and values that become more than 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.4, 0.01, 0.5, 0.01]) == pytest.approx([0.8, 0.04, 0.8, 0.04])
    assert holm([]) == []


def test_macro_f1_as_in_the_example_of_scikit_learn() -> None:
    gold, chosen = ["0", "1", "2", "0", "1", "2"], ["0", "2", "1", "0", "0", "1"]
    assert macro_f1(gold, chosen) == pytest.approx(0.26666667)
    # an invalid answer is a miss of the right label and a false hit of none
    assert macro_f1(["yes", "no"], [None, "no"]) == pytest.approx(0.5)
    assert recall_by_label(["yes", "yes", "no"], ["yes", None, "yes"]) == {"no": (0.0, 1), "yes": (0.5, 2)}


def test_calibration_by_hand() -> None:
    found = calibration([0.95, 0.95, 0.95, 0.95, 0.4, 0.4], [True, True, True, False, True, False])
    assert len(found.bins) == 15
    assert [(one.answers, one.accuracy) for one in found.bins if one.answers] == [(2, 0.5), (4, 0.75)]
    assert found.error == pytest.approx((4 * 0.20 + 2 * 0.10) / 6)
    assert calibration([1.0, 1.0], [True, True]).error == 0.0
    assert softmax([-1e5, -1e5]) == pytest.approx([0.5, 0.5])


def test_equal_models_do_not_differ() -> None:
    """Two models that are right as often, by chance on other questions: in 95 of 100 resamplings nothing is significant."""
    drawn = np.random.default_rng(1234)
    insignificant, outside = 0, 0
    for _ in range(100):
        a, b = drawn.random((2, 500)) < 0.55
        gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
        insignificant += mcnemar_p(gained, lost) >= 0.05
        low, high = difference_interval(gained, lost, 500)
        outside += not low <= 0 <= high
    assert insignificant >= 95
    assert outside <= 8


def test_models_that_differ_are_told_apart() -> None:
    drawn = np.random.default_rng(1234)
    a, b = drawn.random(500) < 0.50, drawn.random(500) < 0.65
    gained, lost = int((b & ~a).sum()), int((a & ~b).sum())
    assert mcnemar_p(gained, lost) < 0.001
    assert difference_interval(gained, lost, 500)[0] > 0
