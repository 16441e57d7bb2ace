"""An evaluation as text for people: figures, comparisons, and where answers are right or wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medsft.core.evaluation.measure import Pair, Result, Share
from medsft.core.evaluation.statistics import Calibration, Interval
from medsft.core.units import count, counted

_BAR = 30
_SIGNIFICANT = 0.05


def percent(value: float | None) -> str:
    """Return a share as ``51.0 %``; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def interval_text(interval: Interval, *, signed: bool = False) -> str:
    """Return ``48.2 to 53.8``, in per cent."""
    sign = "+" if signed else ""
    return f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"


COLUMNS = ("model", "task", "method", "questions", "accuracy", "95 % interval", "macro F1", "always the same", "invalid", "ECE")
NUMBERS = tuple(range(3, len(COLUMNS)))


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the lines of the table of figures."""
    return [
        (
            result.model,
            result.title,
            result.method,
            count(len(result.right)),
            percent(result.accuracy.value),
            interval_text(result.accuracy.interval),
            percent(result.macro_f1),
            f"{percent(result.majority)} ({result.majority_label})" if result.majority is not None else "-",
            percent(result.invalid) if result.method == "generate" else "-",
            f"{result.calibration.error:.3f}" if result.calibration else "-",
        )
        for result in results
    ]


PAIR_COLUMNS = ("from", "to", "task", "method", "difference", "95 % interval", "gained", "lost", "p", "Holm", "")
PAIR_NUMBERS = tuple(range(4, 10))


def pair_rows(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Return the lines of the table of comparisons."""
    return [
        (
            pair.a,
            pair.b,
            pair.task,
            pair.method,
            f"{100 * pair.difference:+.1f}",
            interval_text(pair.interval, signed=True),
            count(pair.gained),
            count(pair.lost),
            _p(pair.p),
            _p(pair.p_holm),
            _verdict(pair),
        )
        for pair in pairs
    ]


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _verdict(pair: Pair) -> str:
    if pair.p_holm >= _SIGNIFICANT:
        return "no certain difference"
    return "better" if pair.difference > 0 else "worse"


def details(result: Result) -> Iterator[str]:
    """Yield what there is to say of a result beside its line in the table."""
    if result.f1 is not None:
        yield f"exact match {_share(result.accuracy)}; F1 of the words {_share(result.f1)}"
    if result.by_text is not None:
        yield f"by the text of the options, a byte: {_share(result.by_text)}"
    if result.recall:
        labels = ", ".join(f"{label} {percent(share)} of {count(times)}" for label, (share, times) in result.recall.items())
        yield f"right by the label that is right: {labels}"
    if result.method == "generate" and result.recall:
        yield f"invalid answers, counted as wrong: {percent(result.invalid)}"
    if result.shifts is not None:
        chosen = ", ".join(f"{label} {percent(share)}" for label, share in result.shifts.chosen.items())
        yield (
            f"over all cyclic orders of the options: {percent(result.shifts.accuracy)}; "
            f"right in every order: {percent(result.shifts.always)}; chosen places: {chosen}"
        )
    yield from _overlap(result)
    if result.calibration is not None:
        yield from reliability_plot(result.calibration)


def _share(share: Share) -> str:
    return f"{percent(share.value)} ({interval_text(share.interval)})"


def _overlap(result: Result) -> Iterator[str]:
    without, with_ = result.without_overlap(), result.with_overlap()
    if without is None or with_ is None:
        yield result.overlap.note
        return
    if not with_.questions:
        yield f"no question overlaps with the training set. {result.overlap.note}"
        return
    others = f"the other {count(without.questions)}: {_share(without)}" if without.questions else "there are no others"
    yield (
        f"{counted(with_.questions, 'question')} ({percent(result.share_of_overlap)}) among the rows of the training set: "
        f"{percent(with_.value)} right; {others}. {result.overlap.note}"
    )


def reliability_plot(calibration: Calibration) -> Iterator[str]:
    """Yield a line for each bin with answers: how sure the model was, how often it was right, and how many answers."""
    yield f"reliability (| is how sure the answers were, # how often they were right), ECE {calibration.error:.3f}:"
    for one in calibration.bins:
        if one.answers:
            filled, sure = round(_BAR * one.accuracy), min(_BAR - 1, round(_BAR * one.confidence))
            bar = "".join("|" if place == sure else "#" if place < filled else "." for place in range(_BAR))
            numbers = f"sure {percent(one.confidence)}, right {percent(one.accuracy)}, {counted(one.answers, 'answer')}"
            yield f"  {one.low:.2f} to {one.high:.2f} {bar} {numbers}"
