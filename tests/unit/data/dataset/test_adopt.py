"""Sets that another program made: the files of Megatron-LLM, without a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from set_request import SetRequest

from medsft.core.data.dataset import dataset
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.data.dataset.indexed import IndexedWriter
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.errors import DataError

TOKENS = [[5, 6, 7, 8], [9], [10, 11, 12]]
ROLES = [[0, 1, 2, 2], [1], [1, 2, 1]]


def _write(folder: Path, tokens: list[list[int]], roles: list[list[int]], dtype: str = "<u2") -> None:
    folder.mkdir(parents=True)
    for kind, documents, number_type in (("text", tokens, dtype), ("role", roles, "<u2")):
        with IndexedWriter(folder / f"{folder.name}-{kind}", number_type) as writer:
            for document in documents:
                writer.add(np.array(document), np.array([len(document)]))
            writer.close()


@pytest.fixture
def request_(tmp_path: Path, hf_folder: Path) -> SetRequest:
    return SetRequest(tmp_path / "old", TokenizeSpec(tokenizer=hf_folder))


def test_needs_to_be_trusted_once_and_is_remembered(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_BLOCK_TOKENS", 2)
    _write(request_.folder, TOKENS, ROLES)
    with pytest.raises(DataError, match="has no manifest") as caught:
        request_.make()
    assert "--trust_cache" in caught.value.hint
    trusted = request_.but(trust_cache=True).make()
    again = request_.make()
    assert [again.tokens(number).tolist() for number in range(3)] == TOKENS
    assert [again.roles(number).tolist() for number in range(3)] == ROLES
    assert again.tokens_by_role == {0: 1, 1: 4, 2: 3}
    assert again.num_tokens == 8
    assert again.answers.columns().tolist() == trusted.answers.columns().tolist() == [[0, 2, 4, 4], [2, 1, 2, 2]]
    assert again.fingerprint == trusted.fingerprint
    assert again.manifest.recipe is None


def test_its_fingerprint_is_that_of_a_set_of_ours_with_the_same_content(request_: SetRequest, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "q", "gold": "a"}\n' * 3)
    ours = request_.but(name="ours", data=(data,)).make()
    tokens, roles = ([list(map(int, part(number))) for number in range(3)] for part in (ours.tokens, ours.roles))
    _write(request_.folder, tokens, roles)
    theirs = request_.but(trust_cache=True).make()
    assert theirs.fingerprint == ours.fingerprint
    for ending in ("text.bin", "text.idx", "role.bin", "role.idx"):
        assert (request_.folder / f"old-{ending}").read_bytes() == (ours.folder / f"ours-{ending}").read_bytes()


def test_with_data_it_is_used_only_when_trusted(request_: SetRequest, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "q", "gold": "a"}\n')
    _write(request_.folder, TOKENS, ROLES)
    with_data = request_.but(data=(data,))
    with pytest.raises(DataError, match="has no manifest"):
        with_data.make()
    assert with_data.but(trust_cache=True).make().num_documents == 3
    with pytest.raises(DataError, match="made by another program"):
        with_data.make()
    assert with_data.but(trust_cache=True).make().num_documents == 3
    assert with_data.but(retokenize=True).make().num_documents == 1


@pytest.mark.parametrize(
    ("tokens", "roles", "message"),
    [
        ([[1, 60_000]], [[1, 2]], "has token 60000, but the tokenizer .* has only"),
        ([[1, 2]], [[1, 4]], "has role 4"),
        ([[1, 2]], [[1], [2]], "do not belong together"),
        ([[1, 2], [3]], [[1], [1, 2]], "do not belong together"),
        ([], [], "holds no documents"),
    ],
)
def test_what_can_be_checked_is_checked(
    request_: SetRequest, tokens: list[list[int]], roles: list[list[int]], message: str
) -> None:
    _write(request_.folder, tokens, roles)
    with pytest.raises(DataError, match=message):
        request_.but(trust_cache=True).make()
    assert not (request_.folder / "manifest.json").exists()


def test_documents_that_overlap_are_refused(request_: SetRequest) -> None:
    _write(request_.folder, TOKENS, ROLES)
    path = request_.folder / "old-text.idx"
    index = bytearray(path.read_bytes())
    index[34 + 12 + 8 : 34 + 12 + 16] = (2).to_bytes(8, "little")
    path.write_bytes(index)
    with pytest.raises(DataError, match="do not follow one another"):
        request_.but(trust_cache=True).make()


def test_a_set_changed_after_it_was_trusted_is_refused(request_: SetRequest) -> None:
    _write(request_.folder, TOKENS, ROLES)
    request_.but(trust_cache=True).make()
    for path in request_.folder.glob("old-[rt]*"):
        path.unlink()
    other = request_.folder.parent / "elsewhere" / "old"
    _write(other, [[1]], [[2]])
    for path in other.iterdir():
        path.rename(request_.folder / path.name)
    with pytest.raises(DataError, match=r"not those that its manifest\.json describes"):
        open_tokenized(request_.folder)


def test_the_tokenizer_must_stay_the_one_it_was_trusted_with(request_: SetRequest, sentence_piece_model: Path) -> None:
    _write(request_.folder, TOKENS, ROLES)
    request_.but(trust_cache=True).make()
    with pytest.raises(DataError, match="another number of tokens"):
        request_.but(tokenizer=sentence_piece_model).make()
