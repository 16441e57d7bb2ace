"""Question/answer rows with the lengths of PubMedQA's, from a fixed seed, so that every machine measures the same documents.

Characters of 500 rows of PubMedQA: questions with their contexts are log-normal around 1,400 (sigma 0.26), answers around 270
(sigma 0.39). The words mean nothing; the number of tokens is all that the time of a training step depends on. The time of
tokenizing depends on how often a word is new: `write_varied` makes that as in PubMedQA, too.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

_TEXT = """
the of and in to a with was were for patients that by study is group after as results from or treatment on at between
this risk clinical not than disease associated significantly outcome we compared be higher an years data analysis age
had cancer are surgery factors who rate increased levels therapy those mortality significant patient survival blood
health care may no women used mean months median score diagnosis acute pain more performed lower response during
controls evaluated pressure children cohort serum chronic hospital effect methods included associations postoperative
stage symptoms diabetes difference myocardial infarction incidence regression prospective randomized retrospective
hypertension pulmonary ventricular infection carcinoma gastrointestinal hepatocellular immunohistochemistry polymorphism
angiotensin glucocorticoid thrombocytopenia
"""
_WORDS = _TEXT.split()
_WEIGHTS = [1 / (rank + 3) for rank in range(len(_WORDS))]


def rows(count: int, *, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield `count` rows with a `prompt` and a `gold`."""
    draw = random.Random(seed)
    for _ in range(count):
        yield _row(draw, partial(_text, draw))


def write(path: Path, count: int, *, seed: int = 0) -> Path:
    """Write rows as JSONL, unless the file is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(count, seed=seed))
    return path


def _row(draw: random.Random, text: Callable[[float], str]) -> dict[str, str]:
    return {
        "prompt": text(draw.lognormvariate(math.log(1400), 0.26)),
        "gold": text(draw.lognormvariate(math.log(270), 0.39)),
    }


_NEW_WORDS = 4.76, 0.712
"""Of the first n words of PubMedQA, a x n^b are different ones (fitted to n = 32,000 and 129,000)."""


def write_varied(path: Path, count: int, *, seed: int = 0) -> Path:
    """Write rows in which new words turn up as often as in PubMedQA; the others repeat one that was there (Simon's model)."""
    if path.exists():
        return path
    draw = random.Random(seed)
    factor, power = _NEW_WORDS
    known = dict.fromkeys(_WORDS)
    spoken = list(known)

    def word() -> str:
        n = len(spoken)
        if draw.random() < factor * power * n ** (power - 1):
            new = next(filter(lambda word: word not in known, iter(lambda: _new_word(draw), "")))
            known[new] = None
            spoken.append(new)
        else:
            spoken.append(spoken[int(draw.random() * n)])
        return spoken[-1]

    def text(characters: float) -> str:
        return " ".join(word() for _ in range(round(characters / 7)))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps(_row(draw, text)) + "\n")
    return path


def _new_word(draw: random.Random) -> str:
    """Beginnings of real ones, now and then with a sign or a number on it, as new words in papers have."""
    stem = "".join(part[: draw.randint(1, 3)] for part in draw.choices(_WORDS, k=3))
    kind = draw.random()
    if kind < 0.6:
        return stem
    return stem + draw.choice(",.;)") if kind < 0.9 else f"({draw.uniform(0, 1000):.2f})"


def _text(draw: random.Random, characters: float) -> str:
    sentences: list[str] = []
    length = 0
    while length < characters:
        words = draw.choices(_WORDS, _WEIGHTS, k=draw.randint(9, 28))
        if draw.random() < 0.4:
            words.insert(draw.randrange(len(words)), f"(p={draw.uniform(0, 0.2):.3f})")
        sentences.append(" ".join(words).capitalize() + ".")
        length += len(sentences[-1]) + 1
    return " ".join(sentences)[: int(characters)]
