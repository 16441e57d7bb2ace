"""Sets that another program made: the files of Megatron-LLM, without a manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsft.core.data.dataset import tokenized
from medsft.core.data.dataset.indexed import IndexedWriter
from medsft.core.data.dataset.tokenize import TokenizeRequest, tokenize
from medsft.core.data.dataset.tokenized import open_tokenized
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
def request_(tmp_path: Path, hf_folder: Path) -> TokenizeRequest:
    return TokenizeRequest(out_dir=tmp_path, name="old", tokenizer=hf_folder)


def test_needs_to_be_trusted_once_and_is_remembered(request_: TokenizeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "_BLOCK_TOKENS", 2)
    _write(request_.folder, TOKENS, ROLES)
    with pytest.raises(DataError, match="has no manifest") as caught:
        tokenize(request_)
    assert "--trust_cache" in caught.value.hint
    trusted = tokenize(replace(request_, trust_cache=True))
    again = tokenize(request_)
    assert [again.tokens(number).tolist() for number in range(3)] == TOKENS
    assert [again.roles(number).tolist() for number in range(3)] == ROLES
    assert again.tokens_by_role == {0: 1, 1: 4, 2: 3}
    assert again.num_tokens == 8
    assert again.answer_spans.tolist() == trusted.answer_spans.tolist() == [[2, 4], [0, 0], [1, 2]]
    assert again.fingerprint == trusted.fingerprint
    assert again.manifest.recipe is None


def test_its_fingerprint_is_that_of_a_set_of_ours_with_the_same_content(request_: TokenizeRequest, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "q", "gold": "a"}\n' * 3)
    ours = tokenize(replace(request_, name="ours", data=(data,)))
    contents = [[list(map(int, part(number))) for number in range(3)] for part in (ours.tokens, ours.roles)]
    _write(request_.folder, *contents)
    theirs = tokenize(replace(request_, trust_cache=True))
    assert theirs.fingerprint == ours.fingerprint
    for ending in ("text.bin", "text.idx", "role.bin", "role.idx"):
        assert (request_.folder / f"old-{ending}").read_bytes() == (ours.folder / f"ours-{ending}").read_bytes()


def test_with_data_it_is_used_only_when_trusted(request_: TokenizeRequest, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "q", "gold": "a"}\n')
    _write(request_.folder, TOKENS, ROLES)
    with_data = replace(request_, data=(data,))
    with pytest.raises(DataError, match="has no manifest"):
        tokenize(with_data)
    assert tokenize(replace(with_data, trust_cache=True)).num_documents == 3
    with pytest.raises(DataError, match="made by another program"):
        tokenize(with_data)
    assert tokenize(replace(with_data, trust_cache=True)).num_documents == 3
    assert tokenize(replace(with_data, retokenize=True)).num_documents == 1


@pytest.mark.parametrize(
    ("tokens", "roles", "message"),
    [
        ([[1, 60_000]], [[1, 2]], "has token 60000, but the tokenizer .* has only"),
        ([[1, 2]], [[1, 3]], "has role 3"),
        ([[1, 2]], [[1], [2]], "do not belong together"),
        ([[1, 2], [3]], [[1], [1, 2]], "do not belong together"),
        ([], [], "holds no documents"),
    ],
)
def test_what_can_be_checked_is_checked(
    request_: TokenizeRequest, tokens: list[list[int]], roles: list[list[int]], message: str
) -> None:
    _write(request_.folder, tokens, roles)
    with pytest.raises(DataError, match=message):
        tokenize(replace(request_, trust_cache=True))
    assert not (request_.folder / "manifest.json").exists()


def test_documents_that_overlap_are_refused(request_: TokenizeRequest) -> None:
    _write(request_.folder, TOKENS, ROLES)
    path = request_.folder / "old-text.idx"
    index = bytearray(path.read_bytes())
    index[34 + 12 + 8 : 34 + 12 + 16] = (2).to_bytes(8, "little")
    path.write_bytes(index)
    with pytest.raises(DataError, match="do not follow one another"):
        tokenize(replace(request_, trust_cache=True))


def test_a_set_changed_after_it_was_trusted_is_refused(request_: TokenizeRequest) -> None:
    _write(request_.folder, TOKENS, ROLES)
    tokenize(replace(request_, trust_cache=True))
    for path in request_.folder.glob("old-[rt]*"):
        path.unlink()
    other = request_.out_dir / "elsewhere" / "old"
    _write(other, [[1]], [[2]])
    for path in other.iterdir():
        path.rename(request_.folder / path.name)
    with pytest.raises(DataError, match=r"not those that its manifest\.json describes"):
        open_tokenized(request_.folder)


def test_the_tokenizer_must_stay_the_one_it_was_trusted_with(request_: TokenizeRequest, sentence_piece_model: Path) -> None:
    _write(request_.folder, TOKENS, ROLES)
    tokenize(replace(request_, trust_cache=True))
    with pytest.raises(DataError, match="another number of tokens"):
        tokenize(replace(request_, tokenizer=sentence_piece_model))
