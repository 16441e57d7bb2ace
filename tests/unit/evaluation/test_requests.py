"""Requests and answers as lines, answers that are kept, and how requests are dealt to processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from medsft.core.evaluation import requests
from medsft.core.evaluation.model import ModelSource
from medsft.core.evaluation.requests import (
    Generate,
    Generated,
    Request,
    Score,
    Scored,
    answer,
    cut_at,
    from_json,
    to_json,
)
from medsft.errors import MismatchError

SCORE = Score(id="s", prefix=(1, 2), continuations=((3,), (4, 5)))
GENERATE = Generate(id="g", prompt=(1,), max_new_tokens=3, ends=(2,), stop_strings=("\n",), temperature=0.5, seed=4)


@pytest.fixture
def model(tmp_path: Path) -> ModelSource:
    return ModelSource(name="m", weights=tmp_path, tokens=10, tokenizer=tmp_path, template="meditron", ends=(2,), context=100)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Request]]:
    """What an engine that answers at once was asked, one list for each process."""
    seen: list[list[Request]] = []

    class Engine:
        def __init__(self, module: str, arguments: Sequence[str], *, source: Path, **_: Any) -> None:
            assert module == "answer"
            self._requests = [from_json(json.loads(line)) for line in source.read_text().splitlines()]
            seen.append(self._requests)

        def lines(self) -> Iterator[dict[str, Any]]:
            for request in self._requests:
                yield to_json(answer_of(request))

        def close(self) -> None:
            pass

    monkeypatch.setattr(requests, "EngineLines", Engine)
    return seen


def answer_of(request: Request) -> Scored | Generated:
    if isinstance(request, Generate):
        return Generated(id=request.id, ids=(9,), ended="end")
    sums, lengths = zip(*((-float(sum(c)), len(c)) for c in request.continuations), strict=True)
    return Scored(id=request.id, log_likelihoods=sums, num_tokens=lengths, greedy=tuple(n == 1 for n in lengths))


@pytest.mark.parametrize("record", [SCORE, GENERATE, answer_of(SCORE), answer_of(GENERATE)])
def test_a_record_comes_back_from_a_line_as_it_was(record: Any) -> None:
    assert from_json(json.loads(json.dumps({**to_json(record), "request": "another field"}))) == record


def test_each_request_is_answered(model: ModelSource, asked: list[list[Request]]) -> None:
    found = {each.id: each for each in answer(model, [SCORE, GENERATE])}
    assert found == {"s": answer_of(SCORE), "g": answer_of(GENERATE)}
    with pytest.raises(ValueError, match="same id"):
        list(answer(model, [SCORE, SCORE]))


def test_answers_that_are_kept_are_not_computed_again(model: ModelSource, asked: list[list[Request]], tmp_path: Path) -> None:
    keep, three = tmp_path / "eval" / "answers.jsonl", Score(id="t", prefix=(1,), continuations=((1,),))
    stream = answer(model, [SCORE, GENERATE], precision="fp32", keep=keep)
    first = next(stream)
    stream.close()  # as a kill does
    with keep.open("ab") as file:
        file.write(b'{"kind": "Scored", "id"')
    for _ in range(2):
        found = {each.id for each in answer(model, [SCORE, GENERATE, three], precision="fp32", keep=keep)}
        assert found == {"s", "g", "t"}
    assert [sorted(each.id for each in part) for part in asked[1:]] == [sorted({"s", "g", "t"} - {first.id})]

    changed = Score(id="t", prefix=(1,), continuations=((2,),))
    assert {e.id: e for e in answer(model, [SCORE, changed], precision="fp32", keep=keep)}["t"] == answer_of(changed)
    assert asked[-1] == [changed]
    list(answer(model, [SCORE], precision="bf16", keep=keep))
    assert asked[-1] == [SCORE]


def test_likelihoods_that_are_no_numbers_are_refused(
    model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of them the first option would be the most likely, whatever the question."""
    good = answer_of(SCORE)
    broken = Scored(id="s", log_likelihoods=(float("nan"), -1.0), num_tokens=(1, 2), greedy=(False, False))
    monkeypatch.setattr(requests, "_ask", lambda *_: iter([from_json(json.loads(json.dumps(to_json(broken))))]))
    with pytest.raises(MismatchError, match="no finite numbers"):
        list(answer(model, [SCORE], precision="fp32", keep=tmp_path / "kept.jsonl"))
    monkeypatch.setattr(requests, "_ask", lambda *_: iter([good]))
    assert list(answer(model, [SCORE], precision="fp32", keep=tmp_path / "kept.jsonl")) == [good]


def test_processes_get_as_much_to_do_and_what_begins_alike_together(model: ModelSource, asked: list[list[Request]]) -> None:
    many = [Score(id=str(n), prefix=(n % 4,) * 50 + (n,), continuations=((1,),)) for n in range(40)]
    assert len(list(answer(model, many, processes=4))) == 40
    assert [len(part) for part in asked] == [10] * 4
    assert all(len({request.prefix[0] for request in part if isinstance(request, Score)}) == 1 for part in asked)
    asked.clear()
    assert len(list(answer(model, many[:1], processes=4))) == 1
    assert len(asked) == 1


def test_a_text_ends_where_the_first_stop_string_begins() -> None:
    assert cut_at("yes.\nQ: no", ("Q:", "\n")) == "yes."
    assert cut_at("yes", ("\n",)) == "yes"
    assert cut_at("yes", ()) == "yes"
