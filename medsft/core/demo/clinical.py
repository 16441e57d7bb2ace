"""Questions and answers for `medsft demo`: simple clinical rules whose answers a program can check.

This demonstrates software. It is not medical advice: the rules are simplified, and nobody should be treated by them.

The rules come in four shapes: a measurement that falls into a band, a finding that has a class, an abbreviation, a dose by
weight. Values, people and wordings vary, so a model has to learn the rule. Every question occurs once. No held-out question is
in the training part; of bands with `_ENOUGH_VALUES` values or more, and of doses, not even its value is, in any wording.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medsft.core.demo import rules

Row = dict[str, str]
"""`prompt`, `gold` (the answer), `rule`."""

QUESTIONS_PER_BAND = 20
_HELD_OUT_SHARE = 0.125
_ENOUGH_VALUES = 6


@dataclass(frozen=True, slots=True)
class _Item:
    """One question. Items with the same `group` go into the same part."""

    rule: str
    answer: str
    group: str
    prompt: str


def generate(seed: int = 1) -> tuple[list[Row], list[Row]]:
    """Return (training rows, held-out rows), in random order, the same for the same seed."""
    rng = random.Random(seed)
    items = [*_scales(rng), *_pressures(rng), *_findings(rng), *_abbreviations(), *_doses(rng)]
    train: list[_Item] = []
    held_out: list[_Item] = []
    strata: dict[tuple[str, str], list[_Item]] = {}
    for item in {item.prompt: item for item in items}.values():
        key = (item.rule, item.answer if item.rule not in _ONE_STRATUM else "")
        strata.setdefault(key, []).append(item)
    for stratum in strata.values():
        groups = list(dict.fromkeys(item.group for item in stratum))
        chosen = set(rng.sample(groups, max(1, round(_HELD_OUT_SHARE * len(groups)))))
        for item in stratum:
            (held_out if item.group in chosen else train).append(item)
    rng.shuffle(train)
    rng.shuffle(held_out)
    return [_row(item) for item in train], [_row(item) for item in held_out]


_ONE_STRATUM = frozenset({"dose", "abbreviation"})
"""Rules with nearly as many answers as questions: held-out questions are drawn from the whole rule, not from each answer."""


def check(row: Mapping[str, str], answer: str) -> bool:
    """Tell whether a generated answer is the right one: the same words, whatever the case, blanks and final full stop."""
    return _plain(answer) == _plain(row["gold"])


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip().casefold()


def _row(item: _Item) -> Row:
    return {"prompt": item.prompt, "gold": item.answer, "rule": item.rule}


def _person(rng: random.Random) -> str:
    return f"a {rng.randint(21, 89)}-year-old {rng.choice(('man', 'woman', 'patient'))}"


def _scales(rng: random.Random) -> Iterator[_Item]:
    for scale in rules.SCALES:
        for label, values in scale.bands():
            rng.shuffle(values)
            enough = len(values) >= _ENOUGH_VALUES
            for turn in range(QUESTIONS_PER_BAND):
                value, wording = values[turn % len(values)], rng.choice(scale.wordings)
                prompt = wording.format(value=value, person=_person(rng))
                yield _Item(scale.name, label, value if enough else prompt, _sentence(prompt))


def _pressures(rng: random.Random) -> Iterator[_Item]:
    """The category of a blood pressure is that of the worse of its two numbers."""
    for label, systolic, diastolic in rules.BLOOD_PRESSURES:
        for _ in range(QUESTIONS_PER_BAND):
            value = f"{rng.choice(systolic)}/{rng.choice(diastolic)}"
            prompt = rng.choice(rules.BLOOD_PRESSURE_WORDINGS).format(value=value, person=_person(rng))
            yield _Item("blood pressure", label, value, _sentence(prompt))


def _findings(rng: random.Random) -> Iterator[_Item]:
    for rule in rules.FINDINGS:
        for label, findings in rule.classes.items():
            for finding in findings:
                for wording in rule.wordings:
                    prompt = _sentence(wording.format(finding=finding, person=_person(rng)))
                    yield _Item(rule.name, label, prompt, prompt)


def _abbreviations() -> Iterator[_Item]:
    for short, meaning in rules.ABBREVIATIONS.items():
        for wording in rules.ABBREVIATION_WORDINGS:
            prompt = wording.format(short=short)
            yield _Item("abbreviation", meaning, prompt, prompt)


def _doses(rng: random.Random) -> Iterator[_Item]:
    for rule in rules.DOSES:
        for weight in range(rule.lightest, rule.heaviest + 1):
            wording = rng.choice(rules.DOSE_WORDINGS)
            prompt = wording.format(drug=rng.choice(rule.drugs), per_kg=rule.per_kg, weight=weight)
            yield _Item("dose", rule.answer(weight), f"{rule.per_kg} {weight}", _sentence(prompt))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
