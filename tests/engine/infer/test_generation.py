"""Generated answers, against transformers' greedy ones for each prompt alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from medsft.core.engine.infer.generation import PAGE, Generator, Limits
from medsft.core.evaluation.requests import Generate, Generated
from medsft.errors import MismatchError

_VOCAB = 96
WIDE = Limits(sequences=64, prompt_tokens=2048, cache_tokens=100_000)
NARROW = Limits(sequences=3, prompt_tokens=20, cache_tokens=4 * PAGE)


def requests(beginning: int = 0) -> list[Generate]:
    draw = random.Random(2)
    shared = tuple(draw.choices(range(_VOCAB), k=beginning))
    return [
        Generate(
            id=f"p{number}",
            prompt=shared + tuple(draw.choices(range(_VOCAB), k=draw.randint(1, 25))),
            max_new_tokens=draw.randint(1, 30),
            ends=(7, 8),
        )
        for number in range(8)
    ]


def by_transformers(reference, request: Generate) -> tuple[tuple[int, ...], str]:
    with torch.no_grad():
        ids = reference.generate(
            torch.tensor([request.prompt]),
            attention_mask=torch.ones(1, len(request.prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=list(request.ends),
            pad_token_id=0,
        )[0, len(request.prompt) :].tolist()
    ended = ids[-1] in request.ends
    return tuple(ids[:-1] if ended else ids), "end" if ended else "length"


def test_greedy_tokens_are_those_of_transformers_whoever_runs_beside_them(variant):
    reference = variant.reference()
    model = variant.ours(reference).requires_grad_(False)
    for asked in (requests(), requests(beginning=40)):
        expected = {request.id: by_transformers(reference, request) for request in asked}
        for limits in (WIDE, NARROW):
            found = {each.id: (each.ids, each.ended) for each in Generator(model, limits).generate(asked)}
            assert found == expected


def test_a_conversation_goes_on_from_what_was_computed(tiny):
    reference = tiny.reference()
    generator = Generator(tiny.ours(reference).requires_grad_(False), WIDE)
    prompt = tuple(range(10, 40))
    for turn in range(4):
        request = Generate(id=str(turn), prompt=prompt, max_new_tokens=12, ends=(7,))
        *tokens, answer = generator.stream(request)
        assert isinstance(answer, Generated)
        assert (answer.ids, answer.ended) == by_transformers(reference, request)
        assert tuple(tokens) == answer.ids
        prompt = (*prompt, *answer.ids, *range(50 + turn, 60)) if turn != 2 else prompt[:20]


def test_a_stop_string_ends_the_answer_at_the_token_that_completes_it(tiny):
    reference = tiny.reference()
    generator = Generator(
        tiny.ours(reference).requires_grad_(False), WIDE, decode=lambda ids: " ".join(map("<{}>".format, ids))
    )
    asked = Generate(id="q", prompt=(5, 6), max_new_tokens=20)
    [free] = generator.generate([asked])
    stop = f"{free.ids[3]}> <{free.ids[4]}"
    [stopped] = generator.generate([replace(asked, stop_strings=("never", stop))])
    first = next(n for n in range(1, 20) if free.ids[n - 1 : n + 1] == free.ids[3:5])
    assert (stopped.ids, stopped.ended) == (free.ids[: first + 1], "stop")


def test_draws_depend_on_the_seed_and_on_nothing_else(tiny):
    model = tiny.ours(tiny.reference()).requires_grad_(False)
    asked = [replace(each, temperature=1.5, top_p=0.9, seed=n, ends=()) for n, each in enumerate(requests())]
    together = {each.id: each.ids for each in Generator(model, WIDE).generate(asked)}
    for request in asked:
        [alone] = Generator(model, NARROW).generate([request])
        assert alone.ids == together[request.id]
    [other] = Generator(model, WIDE).generate([replace(asked[0], seed=99, max_new_tokens=30)])
    [same] = Generator(model, WIDE).generate([replace(asked[0], max_new_tokens=30)])
    assert other.ids != same.ids


def test_a_small_share_of_the_likely_tokens_is_the_most_likely_one(tiny):
    model = tiny.ours(tiny.reference()).requires_grad_(False)
    [asked, *_] = requests()
    [greedy] = Generator(model, WIDE).generate([asked])
    [drawn] = Generator(model, WIDE).generate([replace(asked, temperature=0.7, top_p=1e-6)])
    assert drawn.ids == greedy.ids


def test_a_model_that_computes_no_numbers_writes_nothing(tiny):
    """Its most likely token would be any, again and again."""
    model = tiny.ours(tiny.reference()).requires_grad_(False)
    model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(MismatchError, match="no finite numbers"):
        list(Generator(model, WIDE).generate(requests()))


def test_an_empty_prompt_is_refused_and_no_prompt_is_no_work(tiny):
    generator = Generator(tiny.ours(tiny.reference()).requires_grad_(False), WIDE)
    with pytest.raises(ValueError, match="at least one token"):
        list(generator.generate([Generate(id="q", prompt=(), max_new_tokens=1)]))
    assert list(generator.generate([])) == []
