"""How certain a share is, and whether two models differ. Distributions and tests are scipy's.

References:
    Wilson 1927, Probable inference, the law of succession, and statistical inference. J Am Stat Assoc 22.
    McNemar 1947, in its exact conditional form: a binomial test of the questions on which two models differ.
    Bonett & Price 2012, Adjusted Wald confidence interval for a difference of binomial proportions based on paired data.
        J Educ Behav Stat 37; recommended by Fagerland, Lydersen & Laake 2014, Stat Med 33.
    Holm 1979, A simple sequentially rejective multiple test procedure. Scand J Stat 6.
    Naeini, Cooper & Hauskrecht 2015, Obtaining well calibrated probabilities using Bayesian binning. AAAI.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
BINS = 15

_EQUAL = 1e-12
"""Standard error of a mean of equal numbers, with what rounding leaves of it"""

Interval = tuple[float, float]


def wilson_interval(successes: int, trials: int) -> Interval:
    """Return the 95 % interval of a share of successes; the whole range without a trial."""
    from scipy.stats import binomtest

    if not trials:
        return 0.0, 1.0
    found = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval (Student's t) of a mean of shares, within 0 and 1; the whole range for fewer than two.

    Where all are equal there is no t: Wilson's interval of as many successes, as no shares vary more than successes do.
    """
    from scipy.stats import t

    if len(values) < 2:
        return 0.0, 1.0
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if error < _EQUAL:
        total = round(mean * len(values), 6)
        return wilson_interval(math.floor(total), len(values))[0], wilson_interval(math.ceil(total), len(values))[1]
    low, high = t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)
    return max(0.0, float(low)), min(1.0, float(high))


def mcnemar_p(gained: int, lost: int) -> float:
    """Return the exact two-sided p of McNemar's test for questions that only the second, or only the first, has right."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def difference_interval(gained: int, lost: int, questions: int) -> Interval:
    """Return the 95 % interval (Bonett and Price) of the difference of two shares of the same questions, second less first."""
    from scipy.stats import norm

    if not questions:
        return -1.0, 1.0
    better, worse = (gained + 1) / (questions + 2), (lost + 1) / (questions + 2)
    error = math.sqrt((better + worse - (better - worse) ** 2) / (questions + 2))
    low, high = norm.interval(LEVEL, loc=better - worse, scale=error)
    return max(-1.0, float(low)), min(1.0, float(high))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values as they are after Holm's correction for as many tests, in the same order."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of about the same confidence."""

    low: float
    high: float
    answers: int
    confidence: float
    """Mean of it; 0 without an answer"""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a model knows what it knows."""

    error: float
    """Expected calibration error: mean distance between confidence and accuracy of the bins, weighted by their answers"""
    bins: tuple[Bin, ...]


def calibration(confidences: Sequence[float], right: Sequence[bool]) -> Calibration:
    """Compare confidences from 0 to 1 with how often the answers are right, in 15 bins of equal width."""
    edges = np.linspace(0.0, 1.0, BINS + 1)
    sure, hit = np.asarray(confidences, float), np.asarray(right, float)
    places = np.clip(np.searchsorted(edges, sure, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = places == number
        count = int(inside.sum())
        means = (float(sure[inside].mean()), float(hit[inside].mean())) if count else (0.0, 0.0)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    total = max(1, len(sure))
    return Calibration(sum(one.answers * abs(one.confidence - one.accuracy) for one in bins) / total, tuple(bins))


def softmax(scores: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return log likelihoods as probabilities of the alternatives."""
    values = np.asarray(scores, float)
    grown = np.exp(values - values.max())
    return grown / grown.sum()


def macro_f1(gold: Sequence[str], chosen: Sequence[str | None]) -> float:
    """Return the mean F1 of the labels that are right or chosen somewhere; an invalid answer (None) chooses none of them."""
    labels = dict.fromkeys([*gold, *(label for label in chosen if label is not None)])
    right = Counter(label for label, other in zip(gold, chosen, strict=True) if label == other)
    wanted, given = Counter(gold), Counter(chosen)
    scores = [2 * right[label] / (wanted[label] + given[label]) for label in labels]
    return sum(scores) / len(scores) if scores else 0.0


def recall_by_label(gold: Sequence[str], chosen: Sequence[str | None]) -> Mapping[str, tuple[float, int]]:
    """Return for each label that is right somewhere the share of its questions that are answered so, and their number."""
    wanted = Counter(gold)
    right = Counter(label for label, other in zip(gold, chosen, strict=True) if label == other)
    return {label: (right[label] / wanted[label], wanted[label]) for label in sorted(wanted)}
