from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsft.core.data.dataset import workers, write
from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.dataset.tokenize import TokenizeRequest, tokenize, wait_for_tokenized
from medsft.core.data.dataset.tokenized import TokenizedData, open_tokenized
from medsft.core.data.dataset.write import Progress
from medsft.core.data.sources import lines
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.jsonl import Example
from medsft.core.data.tokenizers.hugging_face import HuggingFaceTokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.errors import DataError, DiskError, LaunchError

WriteRows = Callable[[Path, Iterable[object]], Path]
Rows = list[dict[str, str]]


@pytest.fixture
def request_(tmp_path: Path, hf_folder: Path, write_rows: WriteRows, rows: Rows) -> TokenizeRequest:
    data = (write_rows(tmp_path / "b.jsonl", rows[:7]), write_rows(tmp_path / "a.jsonl", rows[7:]))
    return TokenizeRequest(out_dir=tmp_path / "deep" / "sets", name="my.set", data=data, tokenizer=hf_folder)


def _documents(data: TokenizedData) -> list[tuple[list[int], list[int]]]:
    return [(data.tokens(number).tolist(), data.roles(number).tolist()) for number in range(data.num_documents)]


def _entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_makes_the_files_of_the_original_with_every_document_in_order(request_: TokenizeRequest, rows: Rows) -> None:
    data = tokenize(request_)
    assert _entries(request_.folder) == [
        "manifest.json", "my.set-answers.npy", "my.set-role.bin", "my.set-role.idx", "my.set-rows.npy", "my.set-text.bin",
        "my.set-text.idx",
    ]  # fmt: skip
    assert _entries(request_.out_dir) == ["my.set"]
    opened = open_tokenizer(request_.tokenizer)
    for number, row in enumerate(rows):
        alone = encode_documents([Example(question=row["prompt"], answer=row["gold"])], opened, control=False)
        assert data.tokens(number).tolist() == alone.tokens.tolist()
        assert data.roles(number).tolist() == alone.roles.tolist()
    assert data.lengths.tolist() == [len(data.tokens(number)) for number in range(len(rows))]
    assert data.lengths.dtype == np.int64


def test_facts_of_the_manifest_are_those_of_the_files(request_: TokenizeRequest, rows: Rows) -> None:
    data = tokenize(replace(request_, keys=Keys(system="sys")))
    roles = np.concatenate([data.roles(number) for number in range(data.num_documents)])
    assert (data.num_documents, data.num_tokens) == (len(rows), len(roles))
    assert {int(role): count for role, count in data.tokens_by_role.items()} == {
        role: int((roles == role).sum()) for role in range(3)
    }
    for number, (first, behind) in enumerate(data.answer_spans.tolist()):
        assert np.flatnonzero(data.roles(number) == 2).tolist() == list(range(first, behind))
    tail = data.tokens(0).tolist()[::-1].index(open_tokenizer(request_.tokenizer).stop_id)
    assert data.manifest.answer_tail == tail > 0


def test_the_number_of_processes_does_not_change_a_byte(
    request_: TokenizeRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (write_rows(request_.data[0], rows * 40), request_.data[1])
    fingerprints = set()
    for count, small, block in ((1, 2**22, 2**20), (1, 0, 700), (3, 0, 1100)):
        monkeypatch.setattr(workers, "_SMALL_INPUT_BYTES", small)
        monkeypatch.setattr(lines, "_BLOCK_BYTES", block)
        fingerprints.add(tokenize(replace(request_, data=data, workers=count, retokenize=True)).fingerprint)
    assert len(fingerprints) == 1


def test_a_worker_that_dies_is_an_error_and_leaves_nothing(request_: TokenizeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(workers.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="ended unexpectedly"):
        tokenize(replace(request_, workers=2))
    assert _entries(request_.out_dir) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_rows_stop_before_anything_is_written(
    request_: TokenizeRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(workers, "_SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(lines, "_BLOCK_BYTES", 300)
    bad = [{"prompt": "Mrs Smith", "gold": ""}, b'{"prompt": "Mrs Smith', {"prompt": "Mrs Smith"}]
    write_rows(request_.data[0], [*rows, *bad * 9])
    with pytest.raises(DataError) as caught:
        tokenize(replace(request_, workers=processes))
    message = str(caught.value)
    assert message.startswith("27 rows cannot be used, so nothing was written")
    first = len(rows) + 1
    for number in range(first, first + 20):
        assert f"{request_.data[0]}:{number}: " in message
    assert "... and 7 more" in message
    assert "Smith" not in message
    assert _entries(request_.out_dir) == []


def test_bad_rows_are_skipped_and_counted_by_reason(request_: TokenizeRequest, write_rows: WriteRows, rows: Rows) -> None:
    whole = tokenize(request_)
    write_rows(request_.data[0], [b"nonsense", *rows[:7], {"prompt": "q", "gold": " "}, b"[]", b"nonsense"])
    data = tokenize(replace(request_, name="skipped", bad_rows="skip"))
    assert data.fingerprint == whole.fingerprint
    assert data.manifest.bad_rows == {"not JSON": 2, "empty answer under 'gold'": 1, "not a JSON object": 1}


def test_data_without_a_usable_row_is_an_error(request_: TokenizeRequest, write_rows: WriteRows) -> None:
    write_rows(request_.data[0], [])
    request = replace(request_, data=request_.data[:1])
    with pytest.raises(DataError, match="no row that can be used"):
        tokenize(request)
    assert _entries(request.out_dir) == []


def test_special_strings_follow_the_policy(request_: TokenizeRequest, write_rows: WriteRows) -> None:
    write_rows(request_.data[0], [{"prompt": "a<|im_end|></s>", "gold": "b"}, {"prompt": "a", "gold": "b"}])
    request = replace(request_, data=request_.data[:1])
    escaped = tokenize(request)
    control = tokenize(replace(request, name="control", special_in_text="control"))
    assert escaped.manifest.special_in_text == control.manifest.special_in_text == 2
    assert escaped.tokens(0).tolist().count(2) == 2
    assert control.tokens(0).tolist().count(2) == 3
    with pytest.raises(DataError, match=r"b\.jsonl:1: a control token's name is in the text"):
        tokenize(replace(request, name="error", special_in_text="error"))
    skipped = tokenize(replace(request, name="skip", special_in_text="error", bad_rows="skip"))
    assert skipped.num_documents == 1


def test_an_equal_set_is_used_again_also_when_its_files_were_renamed(request_: TokenizeRequest) -> None:
    first = tokenize(request_)
    stamp = (request_.folder / "my.set-text.bin").stat().st_mtime_ns
    moved = tuple(path.rename(path.with_name(f"moved-{path.name}")) for path in request_.data)
    stages: list[Progress] = []
    again = tokenize(replace(request_, data=moved, bad_rows="skip", special_in_text="control"), progress=stages.append)
    assert again.fingerprint == first.fingerprint
    assert (request_.folder / "my.set-text.bin").stat().st_mtime_ns == stamp
    assert {progress.stage for progress in stages} == {"hash"}


Change = Callable[[TokenizeRequest, Path, WriteRows], TokenizeRequest]


def _with_row(request: TokenizeRequest, tmp_path: Path, write_rows: WriteRows) -> TokenizeRequest:
    write_rows(request.data[0], [{"prompt": "new", "gold": "row", "sys": ""}])
    return request


def _with_tokenizer(request: TokenizeRequest, tmp_path: Path, write_rows: WriteRows) -> TokenizeRequest:
    shutil.copytree(request.tokenizer, tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    return replace(request, tokenizer=tmp_path / "other")


def _with_file(request: TokenizeRequest, tmp_path: Path, write_rows: WriteRows) -> TokenizeRequest:
    return replace(request, data=(*request.data, write_rows(tmp_path / "c.jsonl", [{"prompt": "q", "gold": "a"}])))


CHANGES: dict[str, tuple[Change, str]] = {
    "content": (_with_row, r"b\.jsonl: its content has changed"),
    "new file": (_with_file, r"c\.jsonl: new among the files"),
    "file gone": (lambda r, *_: replace(r, data=r.data[:1]), r"a\.jsonl: no longer among the files"),
    "order": (lambda r, *_: replace(r, data=r.data[::-1]), "given in another order"),
    "repeated": (lambda r, *_: replace(r, data=(*r.data, r.data[0])), "another number of times"),
    "tokenizer": (_with_tokenizer, r"the tokenizer is another one \(it was made with .*hf_tokenizer"),
    "template": (lambda r, *_: replace(r, template="chatml"), "--template was meditron, now chatml"),
    "question": (lambda r, *_: replace(r, keys=Keys(question="sys")), "--question_key was prompt, now sys"),
    "answer": (lambda r, *_: replace(r, keys=Keys(answer="sys")), "--answer_key was gold, now sys"),
    "system": (lambda r, *_: replace(r, keys=Keys(system="sys")), "--system_key was not given, now sys"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stale_set_is_refused_with_what_changed_and_replaced_on_request(
    request_: TokenizeRequest, tmp_path: Path, write_rows: WriteRows, name: str
) -> None:
    change, message = CHANGES[name]
    before = tokenize(request_).fingerprint
    changed = change(request_, tmp_path, write_rows)
    with pytest.raises(DataError, match=message) as caught:
        tokenize(changed)
    assert str(caught.value).count("\n  - ") == 1
    assert "--retokenize" in caught.value.hint
    assert open_tokenized(request_.folder).fingerprint == before
    replaced = tokenize(replace(changed, retokenize=True))
    assert replaced.fingerprint != before
    assert _entries(request_.out_dir) == ["my.set"]
    assert tokenize(changed).fingerprint == replaced.fingerprint


def test_policies_count_only_when_they_decided_something(
    request_: TokenizeRequest, write_rows: WriteRows, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(request_.data[0], [b"nonsense", {"prompt": "</s>", "gold": "b"}])
    tokenize(replace(request_, bad_rows="skip"))
    with pytest.raises(DataError, match="1 bad rows were skipped, now they are an error"):
        tokenize(request_)
    with pytest.raises(DataError, match="--special_in_text was escape, now control"):
        tokenize(replace(request_, bad_rows="skip", special_in_text="control"))


def test_a_set_of_an_older_tokenising_code_is_stale(request_: TokenizeRequest) -> None:
    tokenize(request_)
    path = request_.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["data_layer"] = 0
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="version 0 of the tokenising code"):
        tokenize(request_)


def test_without_data_the_set_is_used_as_it_is_but_not_with_another_tokenizer_or_template(
    request_: TokenizeRequest, tmp_path: Path, write_rows: WriteRows
) -> None:
    made = tokenize(request_)
    for path in request_.data:
        path.unlink()
    without = replace(request_, data=(), keys=Keys(question="other"))
    assert tokenize(without).fingerprint == made.fingerprint
    with pytest.raises(DataError, match="--template was meditron, now chatml"):
        tokenize(replace(without, template="chatml"))
    with pytest.raises(DataError, match="the tokenizer is another one"):
        tokenize(_with_tokenizer(without, tmp_path, write_rows))


def test_neither_data_nor_a_set_is_an_error(request_: TokenizeRequest) -> None:
    with pytest.raises(DataError, match=r"no data is given and .* holds no tokenised set"):
        tokenize(replace(request_, data=()))


def test_missing_data_files_are_named(request_: TokenizeRequest) -> None:
    request_.data[1].unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: No such file"):
        tokenize(request_)


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
        (lambda folder: (folder / "my.set-text.bin").unlink(), "holds no tokenised set"),
    ],
)
def test_a_damaged_set_is_never_used(request_: TokenizeRequest, damage: Callable[[Path], Any], message: str) -> None:
    tokenize(request_)
    tokenize(replace(request_, name="other", data=request_.data[:1]))
    damage(request_.folder)
    with pytest.raises(DataError, match=message):
        tokenize(request_)
    with pytest.raises(DataError, match=message):
        tokenize(replace(request_, data=()))


def test_a_folder_with_other_files_is_never_replaced(request_: TokenizeRequest) -> None:
    request_.folder.mkdir(parents=True)
    (request_.folder / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"also holds files that are not of a tokenised set: thesis\.tex"):
        tokenize(replace(request_, retokenize=True))
    with pytest.raises(DataError, match="exists but holds no tokenised set"):
        tokenize(request_)
    assert (request_.folder / "thesis.tex").read_text() == "x"


def test_an_empty_folder_is_no_obstacle(request_: TokenizeRequest, rows: Rows) -> None:
    request_.folder.mkdir(parents=True)
    assert tokenize(request_).num_documents == len(rows)


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_set(request_: TokenizeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tokenize(request_).fingerprint

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "write_manifest", full)
    with pytest.raises(DiskError, match="The disk is full") as caught:
        tokenize(replace(request_, retokenize=True))
    assert caught.value.exit_code == 3
    assert open_tokenized(request_.folder).fingerprint == before
    assert _entries(request_.out_dir) == ["my.set"]


def test_data_that_changes_meanwhile_is_noticed(request_: TokenizeRequest) -> None:
    def grow(progress: Progress) -> None:
        if progress.stage == "check":
            with request_.data[0].open("a") as stream:
                stream.write('{"prompt": "late", "gold": "row"}\n')

    with pytest.raises(DataError, match="changed while it was read"):
        tokenize(request_, progress=grow)
    assert _entries(request_.out_dir) == []


def test_progress_ends_with_everything_done(request_: TokenizeRequest, rows: Rows) -> None:
    seen: dict[str, Progress] = {}
    tokenize(request_, progress=lambda progress: seen.__setitem__(progress.stage, progress))
    total = sum(path.stat().st_size for path in request_.data)
    assert list(seen) == ["hash", "check", "tokenise"]
    assert all(progress.done_bytes == progress.total_bytes == total for progress in seen.values())
    assert seen["tokenise"].documents == seen["check"].documents == len(rows)
    assert seen["tokenise"].seconds_left == 0


def test_waiting_ends_with_the_set_or_with_an_error(request_: TokenizeRequest) -> None:
    with pytest.raises(DataError, match="did not appear within 0 s"):
        wait_for_tokenized(request_.folder, timeout_seconds=0, poll_seconds=0.01)
    made = tokenize(request_)
    waited = wait_for_tokenized(request_.folder, timeout_seconds=0)
    assert _documents(waited) == _documents(made)


class Panic(BaseException):
    """As pyo3's PanicException."""


@pytest.mark.parametrize("fails", [Panic, Exception, RuntimeError])
def test_a_tokenizer_library_that_fails_is_an_error_with_the_row(
    request_: TokenizeRequest, monkeypatch: pytest.MonkeyPatch, fails: type[BaseException]
) -> None:
    encode = HuggingFaceTokenizer._encode_native

    def failing(self: HuggingFaceTokenizer, texts: Sequence[str]) -> object:
        if any(marked in text for text in texts):
            raise fails(f"what the row says: {marked}")
        return encode(self, texts)

    row = json.loads(request_.data[1].read_text().splitlines()[1])
    marked = row[request_.keys.question]
    monkeypatch.setattr(HuggingFaceTokenizer, "_encode_native", failing)
    with pytest.raises(DataError) as caught:
        tokenize(request_)
    assert f"{request_.data[1]}:2: the tokenizer library fails with {request_.tokenizer}" in str(caught.value)
    assert marked not in str(caught.value)
    assert not request_.folder.exists()


def test_a_worker_names_the_row_that_a_tokenizer_cannot_spell(request_: TokenizeRequest, tmp_path: Path, monkeypatch) -> None:
    """A vocabulary of words without one for the unknown: the library raises bare Exception."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "words"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": text, "gold": "b"}) + "\n" for text in ("a", "a", "\u00e9", "a")))
    monkeypatch.setattr(workers, "_SMALL_INPUT_BYTES", 0)
    with pytest.raises(DataError) as caught:
        tokenize(replace(request_, data=(data,), tokenizer=folder, keys=Keys(), workers=2))
    assert f"{data}:3: the tokenizer library fails with {folder / 'tokenizer.json'} (Exception)" in str(caught.value)
