"""Near repeats against true Jaccard similarities; overlap against counted n-grams."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from medsft.core.data.check import overlap
from medsft.core.data.check.libraries import signatures
from medsft.core.data.check.near import NearRepeats, band_keys
from medsft.core.data.check.overlap import ReferenceIndex, References
from medsft.core.data.check.words import WordHashes, ngrams, words_of


def texts_with_repeats(draw: random.Random) -> list[list[str]]:
    """Thirty texts of 150 words, and copies of each with some words changed: few to many."""
    vocabulary = [f"w{n}" for n in range(5000)]
    originals = [draw.choices(vocabulary, k=150) for _ in range(30)]
    changed = []
    for number, text in enumerate(originals):
        copy = list(text)
        for place in draw.sample(range(150), number):
            copy[place] = draw.choice(vocabulary)
        changed.append(copy)
    return originals + changed


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = (set(zip(text, text[1:], text[2:], strict=False)) for text in (one, other))
    return len(first & second) / len(first | second)


def test_near_repeats_are_those_of_a_true_similarity_of_four_fifths() -> None:
    texts = texts_with_repeats(random.Random(3))
    made = signatures(*ngrams(*WordHashes().flat(texts), 3))
    with NearRepeats() as near:
        near.add(band_keys(made), made.astype(np.uint8))
        groups = near.earlier()
    for one, other in combinations(range(len(texts)), 2):
        similarity = jaccard(texts[one], texts[other])
        if similarity > 0.88:
            assert groups[one] == groups[other]
        if similarity < 0.7:
            assert groups[one] != groups[other]
    assert all(groups[groups] == groups)
    assert all(groups <= np.arange(len(texts)))


def test_words_are_those_of_any_script() -> None:
    assert words_of("Don't  STOP, 5 mg!") == ["don", "t", "stop", "5", "mg"]
    assert words_of("Größe ＡＢＣ１") == ["größe", "abc1"]
    assert words_of("高血圧 です") == ["高", "血", "圧", "で", "す"]


def test_ngrams_of_texts_and_of_short_ones() -> None:
    texts = [list("abcdef"), list("bcd"), [], list("ab"), list("xabcdef")]
    grams, begins = ngrams(*WordHashes().flat(texts), 3)
    of = [grams[begins[n] : begins[n + 1]].tolist() for n in range(len(texts))]
    assert [len(one) for one in of] == [4, 1, 0, 1, 5]
    assert of[0] == of[4][1:]
    assert of[1] == of[0][1:2]
    assert len(set(of[0]) | set(of[3])) == 5


@pytest.mark.parametrize("most", [10**9, 400])
def test_overlap_counts_ngrams_on_both_sides(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """With a part of the n-grams only, too: each row here has far more than half in common, or nothing."""
    monkeypatch.setattr(overlap, "_MOST_GRAMS", most)
    draw = random.Random(1)
    vocabulary = [f"w{n}" for n in range(5000)]
    frame = ["answer", "this", "question", "with", "yes", "or", "no", "and", "nothing", "else", "please"]
    references = [[*frame, *draw.choices(vocabulary, k=100)] for _ in range(20)]
    fresh = [[*frame, *draw.choices(vocabulary, k=40)] for _ in range(20)]
    longer = [[*draw.choices(vocabulary, k=400), *reference[30:]] for reference in references[:5]]
    shorter = [reference[40:70] for reference in references[5:10]]
    hashes, collected = WordHashes(), References()
    for begin in (0, 10):
        block = references[begin : begin + 10]
        collected.add(*ngrams(*hashes.flat(block), 8), np.zeros(len(block), np.uint64))
    with collected.index() as folder:
        index = ReferenceIndex.open(folder)
        rows = [*fresh, *longer, *shorter]
        found = index.shared(*ngrams(*hashes.flat(rows), 8), np.zeros(len(rows), np.uint64))
    assert not folder.exists()
    assert found.rows.tolist() == list(range(20, 30))
    assert found.reference.tolist() == list(range(10))


def test_equal_texts_overlap_however_short() -> None:
    collected = References()
    empty = np.zeros(0, np.uint64), np.zeros(3, np.int64)
    collected.add(*empty, np.array([7, 9], np.uint64))
    with collected.index() as folder:
        found = ReferenceIndex.open(folder).shared(*empty, np.array([9, 8], np.uint64))
    assert (found.rows.tolist(), found.reference.tolist()) == ([0], [1])
