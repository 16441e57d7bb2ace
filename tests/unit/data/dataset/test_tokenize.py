from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from set_request import SetRequest

from medsft.core.data.dataset import pool, write
from medsft.core.data.dataset.dataset import TokenizedDataset, open_tokenized
from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.write import Progress
from medsft.core.data.sources import jsonl
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.conversation import question_and_answer
from medsft.core.data.sources.row_format import RowFormat
from medsft.core.data.tokenizers.hugging_face import HuggingFaceTokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.errors import DataError, DiskError, LaunchError

WriteRows = Callable[[Path, Iterable[object]], Path]
Rows = list[dict[str, str]]


@pytest.fixture
def request_(tmp_path: Path, hf_folder: Path, write_rows: WriteRows, rows: Rows) -> SetRequest:
    data = (write_rows(tmp_path / "b.jsonl", rows[:7]), write_rows(tmp_path / "a.jsonl", rows[7:]))
    return SetRequest(tmp_path / "deep" / "sets" / "my.set", TokenizeSpec(data=data, tokenizer=hf_folder))


def _documents(data: TokenizedDataset) -> list[tuple[list[int], list[int]]]:
    return [(data.tokens(number).tolist(), data.roles(number).tolist()) for number in range(data.num_documents)]


def _entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_makes_the_files_of_the_original_with_every_document_in_order(request_: SetRequest, rows: Rows) -> None:
    data = request_.make()
    assert _entries(request_.folder) == [
        "manifest.json", "my.set-answers.npy", "my.set-role.bin", "my.set-role.idx", "my.set-rows.npy", "my.set-text.bin",
        "my.set-text.idx",
    ]  # fmt: skip
    assert _entries(request_.folder.parent) == ["my.set"]
    opened = open_tokenizer(request_.spec.tokenizer)
    for number, row in enumerate(rows):
        alone = encode_documents([question_and_answer(question=row["prompt"], answer=row["gold"])], opened, control=False)
        assert data.tokens(number).tolist() == alone.tokens.tolist()
        assert data.roles(number).tolist() == alone.roles.tolist()
    assert data.lengths.tolist() == [len(data.tokens(number)) for number in range(len(rows))]
    assert data.lengths.dtype == np.int64


def test_facts_of_the_manifest_are_those_of_the_files(request_: SetRequest, rows: Rows) -> None:
    data = request_.but(rows=RowFormat(keys=Keys(system="sys"))).make()
    roles = np.concatenate([data.roles(number) for number in range(data.num_documents)])
    assert (data.num_documents, data.num_tokens) == (len(rows), len(roles))
    assert {int(role): count for role, count in data.tokens_by_role.items()} == {
        role: int((roles == role).sum()) for role in range(3)
    }
    stop = open_tokenizer(request_.spec.tokenizer).stop_id
    for number, first, end, behind in data.answers.columns().tolist():
        assert np.flatnonzero(data.roles(number) == 2).tolist() == list(range(first, behind))
        assert data.tokens(number).tolist()[end - 1] == stop
        assert end < behind == data.lengths[number]


def test_the_number_of_processes_does_not_change_a_byte(
    request_: SetRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (write_rows(request_.spec.data[0], rows * 40), request_.spec.data[1])
    fingerprints = set()
    for count, small, block in ((1, 2**22, 2**20), (1, 0, 700), (3, 0, 1100)):
        monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", small)
        monkeypatch.setattr(jsonl, "_BLOCK_BYTES", block)
        fingerprints.add(request_.but(data=data, workers=count, retokenize=True).make().fingerprint)
    assert len(fingerprints) == 1


def test_a_worker_that_dies_is_an_error_and_leaves_nothing(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="ended unexpectedly"):
        request_.but(workers=2).make()
    assert _entries(request_.folder.parent) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_rows_stop_before_anything_is_written(
    request_: SetRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 300)
    bad = [{"prompt": "Mrs Smith", "gold": ""}, b'{"prompt": "Mrs Smith', {"prompt": "Mrs Smith"}]
    write_rows(request_.spec.data[0], [*rows, *bad * 9])
    with pytest.raises(DataError) as caught:
        request_.but(workers=processes).make()
    message = str(caught.value)
    assert message.startswith("27 rows cannot be used, so nothing was written")
    first = len(rows) + 1
    for number in range(first, first + 20):
        assert f"{request_.spec.data[0]}:{number}: " in message
    assert "... and 7 more" in message
    assert "Smith" not in message
    assert _entries(request_.folder.parent) == []


def test_bad_rows_are_skipped_and_counted_by_reason(request_: SetRequest, write_rows: WriteRows, rows: Rows) -> None:
    whole = request_.make()
    write_rows(request_.spec.data[0], [b"nonsense", *rows[:7], {"prompt": "q", "gold": " "}, b"[]", b"nonsense"])
    data = request_.but(name="skipped", bad_rows="skip").make()
    assert data.fingerprint == whole.fingerprint
    assert data.manifest.bad_rows == {"not JSON": 2, "empty answer under 'gold'": 1, "not a JSON object": 1}


def test_data_without_a_usable_row_is_an_error(request_: SetRequest, write_rows: WriteRows) -> None:
    write_rows(request_.spec.data[0], [])
    request = request_.but(data=request_.spec.data[:1])
    with pytest.raises(DataError, match="no row that can be used"):
        request.make()
    assert _entries(request.folder.parent) == []


def test_special_strings_follow_the_policy(request_: SetRequest, write_rows: WriteRows) -> None:
    write_rows(request_.spec.data[0], [{"prompt": "a<|im_end|></s>", "gold": "b"}, {"prompt": "a", "gold": "b"}])
    request = request_.but(data=request_.spec.data[:1])
    escaped = request.make()
    control = request.but(name="control", special_in_text="control").make()
    assert escaped.manifest.special_in_text == control.manifest.special_in_text == 2
    assert escaped.tokens(0).tolist().count(2) == 2
    assert control.tokens(0).tolist().count(2) == 3
    with pytest.raises(DataError, match=r"b\.jsonl:1: a control token's name is in the text"):
        request.but(name="error", special_in_text="error").make()
    skipped = request.but(name="skip", special_in_text="error", bad_rows="skip").make()
    assert skipped.num_documents == 1


def test_an_equal_set_is_used_again_also_when_its_files_were_renamed(request_: SetRequest) -> None:
    first = request_.make()
    stamp = (request_.folder / "my.set-text.bin").stat().st_mtime_ns
    moved = tuple(path.rename(path.with_name(f"moved-{path.name}")) for path in request_.spec.data)
    stages: list[Progress] = []
    again = request_.but(data=moved, bad_rows="skip", special_in_text="control").make(progress=stages.append)
    assert again.fingerprint == first.fingerprint
    assert (request_.folder / "my.set-text.bin").stat().st_mtime_ns == stamp
    assert {progress.stage for progress in stages} == {"hash"}


Change = Callable[[SetRequest, Path, WriteRows], SetRequest]


def _with_row(request: SetRequest, tmp_path: Path, write_rows: WriteRows) -> SetRequest:
    write_rows(request.spec.data[0], [{"prompt": "new", "gold": "row", "sys": ""}])
    return request


def _with_tokenizer(request: SetRequest, tmp_path: Path, write_rows: WriteRows) -> SetRequest:
    shutil.copytree(request.spec.tokenizer, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    return request.but(tokenizer=tmp_path / "other")


def _with_file(request: SetRequest, tmp_path: Path, write_rows: WriteRows) -> SetRequest:
    return request.but(data=(*request.spec.data, write_rows(tmp_path / "c.jsonl", [{"prompt": "q", "gold": "a"}])))


CHANGES: dict[str, tuple[Change, str]] = {
    "content": (_with_row, r"b\.jsonl: its content has changed"),
    "new file": (_with_file, r"c\.jsonl: new among the files"),
    "file gone": (lambda r, *_: r.but(data=r.spec.data[:1]), r"a\.jsonl: no longer among the files"),
    "order": (lambda r, *_: r.but(data=r.spec.data[::-1]), "given in another order"),
    "repeated": (lambda r, *_: r.but(data=(*r.spec.data, r.spec.data[0])), "another number of times"),
    "tokenizer": (_with_tokenizer, r"the tokenizer is another one \(it was made with .*hf_tokenizer"),
    "template": (lambda r, *_: r.but(template="chatml"), "--template was meditron, now chatml"),
    "question": (lambda r, *_: r.but(rows=RowFormat(keys=Keys(question="sys"))), "--question_key was prompt, now sys"),
    "answer": (lambda r, *_: r.but(rows=RowFormat(keys=Keys(answer="sys"))), "--answer_key was gold, now sys"),
    "system": (lambda r, *_: r.but(rows=RowFormat(keys=Keys(system="sys"))), "--system_key was not given, now sys"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stale_set_is_refused_with_what_changed_and_replaced_on_request(
    request_: SetRequest, tmp_path: Path, write_rows: WriteRows, name: str
) -> None:
    change, message = CHANGES[name]
    before = request_.make().fingerprint
    changed = change(request_, tmp_path, write_rows)
    with pytest.raises(DataError, match=message) as caught:
        changed.make()
    assert str(caught.value).count("\n  - ") == 1
    assert "--retokenize" in caught.value.hint
    assert open_tokenized(request_.folder).fingerprint == before
    replaced = changed.but(retokenize=True).make()
    assert replaced.fingerprint != before
    assert _entries(request_.folder.parent) == ["my.set"]
    assert changed.make().fingerprint == replaced.fingerprint


def test_policies_count_only_when_they_decided_something(
    request_: SetRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(request_.spec.data[0], [b"nonsense", {"prompt": "</s>", "gold": "b"}])
    request_.but(bad_rows="skip").make()
    with pytest.raises(DataError, match="1 bad rows were skipped, now they are an error"):
        request_.make()
    with pytest.raises(DataError, match="--special_in_text was escape, now control"):
        request_.but(bad_rows="skip", special_in_text="control").make()


def test_a_set_of_an_older_tokenizing_code_is_stale(request_: SetRequest) -> None:
    request_.make()
    path = request_.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["data_layer"] = 0
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="version 0 of the tokenizing code"):
        request_.make()


def test_without_data_the_set_is_used_as_it_is_but_not_with_another_tokenizer_or_template(
    request_: SetRequest, tmp_path: Path, write_rows: WriteRows
) -> None:
    made = request_.make()
    for path in request_.spec.data:
        path.unlink()
    without = request_.but(data=(), rows=RowFormat(keys=Keys(question="other")))
    assert without.make().fingerprint == made.fingerprint
    with pytest.raises(DataError, match="--template was meditron, now chatml"):
        without.but(template="chatml").make()
    with pytest.raises(DataError, match="the tokenizer is another one"):
        _with_tokenizer(without, tmp_path, write_rows).make()


def test_neither_data_nor_a_set_is_an_error(request_: SetRequest) -> None:
    with pytest.raises(DataError, match=r"no data is given and .* holds no tokenized set"):
        request_.but(data=()).make()


def test_missing_data_files_are_named(request_: SetRequest) -> None:
    request_.spec.data[1].unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: No such file"):
        request_.make()


def _damage_bin(folder: Path) -> None:
    path = folder / "my.set-text.bin"
    path.write_bytes(path.read_bytes()[:-2])


def _damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": 1')


def _swap_files(folder: Path) -> None:
    for ending in ("bin", "idx"):
        shutil.copy(folder.parent / "other" / f"other-text.{ending}", folder / f"my.set-text.{ending}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_bin, "bytes where its index says"),
        (_damage_manifest, "is damaged"),
        (_swap_files, "do not belong together"),
        (lambda folder: (folder / "my.set-role.idx").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: (folder / "my.set-text.bin").unlink(), "holds no tokenized set"),
    ],
)
def test_a_damaged_set_is_never_used(request_: SetRequest, damage: Callable[[Path], Any], message: str) -> None:
    request_.make()
    request_.but(name="other", data=request_.spec.data[:1]).make()
    damage(request_.folder)
    with pytest.raises(DataError, match=message):
        request_.make()
    with pytest.raises(DataError, match=message):
        request_.but(data=()).make()


def test_a_folder_with_other_files_is_never_replaced(request_: SetRequest) -> None:
    request_.folder.mkdir(parents=True)
    (request_.folder / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"also holds files that are not of a tokenized set: thesis\.tex"):
        request_.but(retokenize=True).make()
    with pytest.raises(DataError, match="exists but holds no tokenized set"):
        request_.make()
    assert (request_.folder / "thesis.tex").read_text() == "x"


def test_an_empty_folder_is_no_obstacle(request_: SetRequest, rows: Rows) -> None:
    request_.folder.mkdir(parents=True)
    assert request_.make().num_documents == len(rows)


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_set(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = request_.make().fingerprint

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_manifest", full)
    with pytest.raises(DiskError, match="The disk is full") as caught:
        request_.but(retokenize=True).make()
    assert caught.value.exit_code == 3
    assert open_tokenized(request_.folder).fingerprint == before
    assert _entries(request_.folder.parent) == ["my.set"]


def test_data_that_changes_meanwhile_is_noticed(request_: SetRequest) -> None:
    def grow(progress: Progress) -> None:
        if progress.stage == "check":
            with request_.spec.data[0].open("a") as stream:
                stream.write('{"prompt": "late", "gold": "row"}\n')

    with pytest.raises(DataError, match="changed while it was read"):
        request_.make(progress=grow)
    assert _entries(request_.folder.parent) == []


def test_progress_ends_with_everything_done(request_: SetRequest, rows: Rows) -> None:
    seen: dict[str, Progress] = {}
    request_.make(progress=lambda progress: seen.__setitem__(progress.stage, progress))
    total = sum(path.stat().st_size for path in request_.spec.data)
    assert list(seen) == ["hash", "check", "tokenize"]
    assert all(progress.done_bytes == progress.total_bytes == total for progress in seen.values())
    assert seen["tokenize"].documents == seen["check"].documents == len(rows)
    assert seen["tokenize"].seconds_left == 0


class Panic(BaseException):
    """As pyo3's PanicException."""


@pytest.mark.parametrize("fails", [Panic, Exception, RuntimeError])
def test_a_tokenizer_library_that_fails_is_an_error_with_the_row(
    request_: SetRequest, monkeypatch: pytest.MonkeyPatch, fails: type[BaseException]
) -> None:
    encode = HuggingFaceTokenizer._encode_native

    def failing(self: HuggingFaceTokenizer, texts: Sequence[str]) -> object:
        if any(marked in text for text in texts):
            raise fails(f"what the row says: {marked}")
        return encode(self, texts)

    row = json.loads(request_.spec.data[1].read_text().splitlines()[1])
    marked = row[Keys().question]
    monkeypatch.setattr(HuggingFaceTokenizer, "_encode_native", failing)
    with pytest.raises(DataError) as caught:
        request_.make()
    assert f"{request_.spec.data[1]}:2: the tokenizer library fails with {request_.spec.tokenizer}" in str(caught.value)
    assert marked not in str(caught.value)
    assert not request_.folder.exists()


def test_a_worker_names_the_row_that_a_tokenizer_cannot_spell(request_: SetRequest, tmp_path: Path, monkeypatch) -> None:
    """A vocabulary of words without one for the unknown: the library raises bare Exception."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": text, "gold": "b"}) + "\n" for text in ("a", "a", "\u00e9", "a")))
    monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", 0)
    with pytest.raises(DataError) as caught:
        request_.but(data=(data,), tokenizer=folder, rows=RowFormat(), workers=2).make()
    assert f"{data}:3: the tokenizer library fails with {folder / 'tokenizer.json'} (Exception)" in str(caught.value)
