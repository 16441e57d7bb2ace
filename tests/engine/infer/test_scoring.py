"""Scores of continuations, against transformers on each text alone."""

from __future__ import annotations

import random

import pytest
import torch

from medsft.core.engine.infer.scoring import batches, common, families, score
from medsft.core.evaluation.requests import Score

_VOCAB = 96


def requests() -> list[Score]:
    """Questions with options of several lengths: some behind the same examples, some alone, two with the same text."""
    draw = random.Random(1)
    examples = tuple(draw.choices(range(_VOCAB), k=30))
    found = []
    for number in range(9):
        text = tuple(draw.choices(range(_VOCAB), k=draw.randint(1, 20)))
        prefix = examples + text if number % 3 else text
        options = tuple(tuple(draw.choices(range(_VOCAB), k=length)) for length in (1, 1, 4, draw.randint(1, 9)))
        found.append(Score(id=f"q{number}", prefix=prefix, continuations=options))
    return [*found, Score(id="twin", prefix=found[1].prefix, continuations=((3,),))]


def by_transformers(reference, request: Score) -> list[tuple[float, bool]]:
    found = []
    for continuation in request.continuations:
        ids = torch.tensor([[*request.prefix, *continuation]])
        with torch.no_grad():
            logits = reference(ids).logits[0, len(request.prefix) - 1 : -1]
        labels = torch.tensor(continuation)
        log_p = logits.double().log_softmax(-1).gather(1, labels[:, None])
        found.append((float(log_p.sum()), bool((logits.argmax(-1) == labels).all())))
    return found


def test_scores_are_those_of_transformers_however_they_are_packed(variant):
    reference = variant.reference()
    model, asked = variant.ours(reference).requires_grad_(False), requests()
    expected = {request.id: by_transformers(reference, request) for request in asked}
    for most_tokens in (10_000, 60, 1):
        found = {scored.id: scored for scored in score(model, asked, most_tokens=most_tokens)}
        assert found.keys() == expected.keys()
        for request in asked:
            scored, wanted = found[request.id], expected[request.id]
            assert scored.num_tokens == tuple(map(len, request.continuations))
            assert scored.greedy == tuple(greedy for _, greedy in wanted)
            assert scored.log_likelihoods == pytest.approx([log_p for log_p, _ in wanted], abs=2e-5, rel=1e-5)


def test_a_likely_continuation_is_told(tiny):
    reference = tiny.reference()
    ids = [5, 6, 7]
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    asked = Score(id="q", prefix=tuple(ids[:3]), continuations=(tuple(ids[3:]), (*ids[3:6], (ids[6] + 1) % _VOCAB)))
    [scored] = score(tiny.ours(reference).requires_grad_(False), [asked], most_tokens=100)
    assert scored.greedy == (True, False)


def test_what_texts_begin_with_is_computed_once():
    asked = requests()
    found = families(asked)
    assert sorted(request.id for family in found for request in family.requests) == sorted(request.id for request in asked)
    shared = [family for family in found if family.shared]
    assert {request.id for family in shared for request in family.requests} >= {"q1", "q2", "q4", "q5", "q7", "q8", "twin"}
    apart = sum(len(r.prefix) + sum(len(c) - 1 for c in r.continuations) for r in asked)
    assert sum(family.tokens for family in found) <= apart - 6 * 30
    for most in (10_000, 60, 1):
        packed = batches(found, most)
        assert sorted(r.id for b in packed for f in b.families for r in f.requests) == sorted(r.id for r in asked)
        assert all(sum(f.tokens for f in b.families) <= most for b in packed if len(b.families) > 1)


def test_how_far_texts_are_alike():
    assert common((1, 2, 3), (1, 2, 4)) == 2
    assert common((1, 2), (1, 2, 4)) == 2
    assert common((1, 2, 3), (1, 2, 3), most=1) == 1
    assert common((), (1,)) == 0


@pytest.mark.parametrize(("prefix", "continuations"), [((), ((1,),)), ((1,), ((),))])
def test_nothing_to_go_on_from_and_nothing_to_score_are_refused(prefix, continuations):
    with pytest.raises(ValueError, match="at least one token"):
        families([Score(id="q", prefix=prefix, continuations=continuations)])
