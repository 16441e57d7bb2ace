"""Text that the vocabulary cannot spell becomes the tokenizer's unknown token: it is counted, and said where it is much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from set_request import SetRequest

from medsft.core.data.dataset.findings import unknown_sentence
from medsft.core.data.dataset.manifest import MANIFEST_NAME, read_manifest, write_manifest
from medsft.core.data.dataset.spec import TokenizeSpec

WriteRows = Callable[[Path, Iterable[object]], Path]


def _write_words(folder: Path, *, unknown: str, end: str) -> Path:
    """A tokenizer of four words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir()
    words = dict.fromkeys(("what", "helps", "rest", "water", "[UNK]", "</s>"))
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": unknown, "eos_token": end}))
    return folder


@pytest.fixture
def request_(tmp_path: Path, write_rows: WriteRows) -> SetRequest:
    rows = [{"prompt": "what helps", "gold": "rest"}, {"prompt": "what helps", "gold": "amoxicillin rest twice"}]
    tokenizer = _write_words(tmp_path / "words", unknown="[UNK]", end="</s>")
    return SetRequest(tmp_path / "set", TokenizeSpec(data=(write_rows(tmp_path / "rows.jsonl", rows),), tokenizer=tokenizer))


def test_unknown_tokens_are_counted_and_said(request_: SetRequest) -> None:
    data = request_.make()
    opened = request_.spec.open_tokenizer()
    assert data.manifest.unknown == sum(data.tokens(number).tolist().count(opened.tokenizer.unk_id) for number in range(2))
    assert data.manifest.unknown >= 2
    [sentence] = [line for line in data.manifest.remarks("--data") if "unknown token" in line]
    assert sentence.startswith("--data: ")
    assert f"% of the tokens ({data.manifest.unknown})" in sentence
    assert read_manifest(request_.folder) == data.manifest


def test_a_set_of_another_program_is_counted_too(request_: SetRequest) -> None:
    counted = request_.make().manifest.unknown
    (request_.folder / MANIFEST_NAME).unlink()
    assert request_.but(data=(), trust_cache=True).make().manifest.unknown == counted


def test_a_set_without_the_count_is_read_and_one_with_none_has_no_key_that_older_versions_do_not_know(
    request_: SetRequest,
) -> None:
    manifest = replace(request_.make().manifest, unknown=0)
    write_manifest(request_.folder, manifest)
    assert "unknown" not in json.loads((request_.folder / MANIFEST_NAME).read_text())
    assert read_manifest(request_.folder) == manifest
    assert manifest.remarks("--data") == []


def test_a_tokenizer_whose_unknown_token_also_ends_texts_is_not_counted(request_: SetRequest, tmp_path: Path) -> None:
    tokenizer = _write_words(tmp_path / "as-gpt2", unknown="</s>", end="</s>")
    assert request_.but(tokenizer=tokenizer).make().manifest.unknown == 0


@pytest.mark.parametrize(("unknown", "told"), [(0, ""), (9, ""), (10, "0.1 % of the tokens (10)"), (6200, "62 % of")])
def test_a_stray_sign_is_not_worth_a_sentence(unknown: int, told: str) -> None:
    assert [told in line for line in unknown_sentence(unknown, 10_000, "--val")] == [True] * bool(told)
