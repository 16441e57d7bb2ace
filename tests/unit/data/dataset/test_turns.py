"""Sets of conversations: what `--turns` makes of them, and when a set must be made anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from set_request import SetRequest
from tiny_tokenizers import QWEN, write_qwen

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

WriteRows = Callable[[Path, Iterable[object]], Path]
REWRITES = QWEN.replace("'\\n' + message.content }}", "'\\n' + message.content + ('!' if loop.last else '') }}")
FORMAT = RowFormat(name="messages", keys=Keys(messages="messages"))


def _row(*contents: str, **names: str) -> dict[str, object]:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": names.get(text, role), "content": text} for text, role in zip(contents, roles, strict=False)]}


ROWS = [_row("q1", "a1", "q2", "a2", "q3", "a3"), _row("q", "a"), _row("q1", "a1", "q2", "a2", "thanks")]


@pytest.fixture
def request_(tmp_path: Path, write_rows: WriteRows) -> SetRequest:
    data = (write_rows(tmp_path / "rows.jsonl", ROWS),)
    tokenizer = write_qwen(tmp_path / "qwen")
    return SetRequest(tmp_path / "sets" / "s", TokenizeSpec(data=data, tokenizer=tokenizer, rows=FORMAT, template="model"))


def _answers_per_document(data: TokenizedDataset) -> list[int]:
    return [int((data.answers.document == number).sum()) for number in range(data.num_documents)]


def test_all_and_last_are_one_set(request_: SetRequest) -> None:
    data = request_.make()
    assert _answers_per_document(data) == [3, 1, 2]
    assert "turns" not in json.loads((request_.folder / "manifest.json").read_text())["recipe"]
    assert request_.but(turns="last").make().fingerprint == data.fingerprint
    assert request_.but(name="t", turns="last").make().fingerprint == data.fingerprint
    assert request_.but(name="t").make().fingerprint == data.fingerprint, "and back"


def test_documents_of_a_split_row_have_its_hashes_and_its_file(
    request_: SetRequest, tmp_path: Path, write_rows: WriteRows
) -> None:
    """By which `--val SHARE` chooses, and `--data FILE:SHARE` counts."""
    rows = [row | {"of": {"patient": patient}} for row, patient in zip(ROWS, ("A", "B", "A"), strict=True)]
    files = (write_rows(tmp_path / "one.jsonl", rows[:2]), write_rows(tmp_path / "two.jsonl", rows[2:]))
    grouped = RowFormat(name="messages", keys=Keys(messages="messages", group="of.patient"))
    data = request_.but(name="split", turns="split", data=files, rows=grouped).make()
    assert data.manifest.input_documents == (4, 2)
    assert data.row_hashes is not None
    assert data.group_hashes is not None
    first, second = data.group_hashes[0], data.group_hashes[3]
    assert data.group_hashes.tolist() == [first, first, first, second, first, first]
    assert len(set(data.row_hashes.tolist())) == 3
    assert data.manifest.findings is not None
    assert data.manifest.findings.unused_text == {}


def test_split_makes_a_document_for_each_answer(request_: SetRequest) -> None:
    whole, data = request_.make(), request_.but(name="split", turns="split").make()
    assert _answers_per_document(data) == [1, 2, 3, 1, 1, 2], "the last is trained on, as the run decides"
    assert data.manifest.findings is not None
    assert (data.manifest.findings.rows, data.manifest.findings.repeated) == (3, 0)
    assert data.row_hashes is not None
    assert whole.row_hashes is not None
    assert data.row_hashes.tolist() == [whole.row_hashes[row] for row in (0, 0, 0, 1, 2, 2)]
    assert data.tokens(2).tolist() == whole.tokens(0).tolist()
    assert data.tokens(1).tolist() == data.tokens(2)[: data.lengths[1]].tolist()
    for changed in ("all", "last"):
        with pytest.raises(DataError, match=f"--turns was split, now {changed}"):
            request_.but(name="split", turns=changed).make()
    with pytest.raises(DataError, match="--turns was split, now all"):
        request_.but(name="split", data=()).make()
    with pytest.raises(DataError, match="--turns was all, now split"):
        request_.but(turns="split").make()


def test_a_template_that_rewrites_answers(request_: SetRequest) -> None:
    tokenizer = write_qwen(request_.folder.parent / "rewriting", template=REWRITES)
    asked = request_.but(tokenizer=tokenizer)
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=r"rows.jsonl:1: the tokenizer's chat template writes an earlier answer") as caught:
            asked.but(bad_rows=policy).make()
        assert "--turns split" in caught.value.hint
    last = asked.but(turns="last").make()
    assert (_answers_per_document(last), last.manifest.rewritten) == ([1, 1, 1], 3)
    assert "--data: the chat template writes 3 earlier answers in another way" in last.manifest.remarks("--data")[-1]
    assert last.manifest.recipe is not None
    assert last.manifest.recipe.turns == "last"
    with pytest.raises(DataError, match="--turns was last, now all"):
        asked.make()
    split = asked.but(name="split", turns="split").make()
    assert (_answers_per_document(split), split.manifest.rewritten) == ([1] * 6, 4)
    assert [int(split.roles(number)[-1]) for number in range(6)] == [Role.ANSWER] * 6


def test_a_row_that_the_template_cannot_write_is_a_bad_row(tmp_path: Path, write_rows: WriteRows) -> None:
    rows = [*ROWS, _row("q", "call", "5 mg", "a", **{"5 mg": "tool"})]
    spec = TokenizeSpec(data=(write_rows(tmp_path / "rows.jsonl", rows),), tokenizer=write_qwen(tmp_path / "q"), rows=FORMAT)
    asked = SetRequest(tmp_path / "sets" / "s", spec)
    with pytest.raises(DataError, match=r"rows.jsonl:4: --template meditron has no place for the role tool \(use --template"):
        asked.make()
    with pytest.raises(DataError, match="leaves out what a tool says"):
        asked.but(template="model").make()
    skipped = asked.but(bad_rows="skip").make()
    assert (skipped.num_documents, sum(skipped.manifest.bad_rows.values())) == (3, 1)
