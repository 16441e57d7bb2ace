"""Texts that are encoded as one and cut: the ids of a text encoded up to each cut, for a fraction of the work."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizers import write_llama_3, write_qwen

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.dataset.joint import _cut, _prefixes, encode_jointly
from medsft.core.data.sources.conversation import Message
from medsft.core.data.tokenizers.fast import TokenIds, as_ids
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.special_tokens import pattern_of
from medsft.core.data.tokenizers.template import Role, Segment


def _pairs(segments: Sequence[Segment]) -> list[TokenIds]:
    """An encoder for which `ab` is one token."""
    return [as_ids([-1 if token == "\0" else ord(token) for token in one.text.replace("ab", "\0")]) for one in segments]


def _ids(*texts: str) -> list[list[int]]:
    segments = [Segment(text, Role.QUESTION) for text in texts]
    slow = [ids.tolist() for ids in _cut(segments, _pairs(_prefixes(segments)), _pairs)]
    for control in ({}, {"x": ord("x")}, {"b": ord("b"), "x": ord("x")}):  # of `b` it is not true that it is one token
        assert [ids.tolist() for ids in encode_jointly([segments, segments], _pairs, control)] == slow * 2
    return slow


def test_texts_are_cut_where_no_token_lies_across() -> None:
    assert _ids("xab", "y", "ab") == [[120, -1], [121], [-1]]
    assert _ids("x") == [[120]]
    assert _ids("x", "", "y") == [[120], [], [121]]
    assert _ids("x", "", "x", "y", "") == [[120], [], [120], [121], []]


def test_where_a_token_lies_across_the_text_is_encoded_in_two() -> None:
    assert _ids("xa", "b") == [[120, 97], [98]]
    assert _ids("x", "a", "b", "ab") == [[120], [97], [98], [-1]]
    assert _ids("a", "ba", "b") == [[97], [98, 97], [98]]
    assert _ids("xa", "bxa", "bx", "xab", "abx") == [[120, 97], [98, 120, 97], [98, 120], [120, -1], [-1, 120]]
    assert np.concatenate(_pairs([Segment("xab", Role.QUESTION)])).tolist() == [120, -1]


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}], ids=str)
def test_ids_are_those_of_a_text_encoded_up_to_each_cut(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = write_qwen(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token |= flags
    (folder / "tokenizer.json").write_text(json.dumps(content))
    opened = open_tokenizer(folder)
    special = dict(opened.tokenizer.special_ids)
    draw = random.Random(3)
    bits = [*special, *special, "user\n", "assistant\n", " ", "\n\n", "the dose", " is 5 mg", "é🙂", "a"]
    for number in range(80):
        texts = ["".join(draw.choices(bits, k=draw.randint(0, 9))) for _ in range(draw.randint(1, 6))]
        written = [  # by people: the encoder of such texts knows no flags
            tuple(match.span() for match in pattern_of(tuple(special)).finditer(text) if draw.random() < 0.4)
            for text in (texts if number % 2 and not flags else [""] * len(texts))
        ]
        segments = [Segment(text, Role.QUESTION, ranges) for text, ranges in zip(texts, written, strict=True)]
        slow = _cut(segments, opened.tokenizer.encode(_prefixes(segments)), opened.tokenizer.encode)
        fast = encode_jointly([segments], opened.tokenizer.encode, special)
        assert [ids.tolist() for ids in fast] == [ids.tolist() for ids in slow]


def test_the_work_grows_as_the_text_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_tokenizer(write_llama_3(tmp_path), template="model")
    encoded: list[int] = []
    encode = opened.tokenizer.encode

    def counted(segments: Sequence[Segment], *, control: bool = False) -> list[TokenIds]:
        encoded.extend(len(segment.text) for segment in segments)
        return encode(segments, control=control)

    monkeypatch.setattr(opened.tokenizer, "encode", counted)
    for turns, most in ((1, 2.0), (40, 1.2)):
        encoded.clear()
        conversation = (Message("user", "the dose " * 50), Message("assistant", "5 mg " * 50)) * turns
        documents = encode_documents([conversation], opened, control=False)
        assert sum(encoded) < most * len(opened.template.text(conversation))
        assert opened.tokenizer.decode(documents.tokens.tolist()) == opened.template.text(conversation)
