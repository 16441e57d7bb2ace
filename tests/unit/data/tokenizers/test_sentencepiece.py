"""Ids of a tokenizer.model, held against a plain reading of the original's description that shares no code with ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.open import MEDITRON_EXTRA_IDS, open_tokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.errors import DataError

ORIGINAL_IDS = {
    "<s>": 1, "</s>": 2, "<CLS>": 32000, "<SEP>": 32001, "<EOD>": 32002, "<MASK>": 32003, "<PAD>": 32004,
    "[bib_ref]": 32005, "[/bib_ref]": 32006, "[fig_ref]": 32007, "[/fig_ref]": 32008, "[bib]": 32009, "[/bib]": 32010,
    "[fig]": 32011, "[/fig]": 32012, "[table]": 32013, "[/table]": 32014, "[formula]": 32015, "[/formula]": 32016,
    "<|im_start|>": 32017, "<|im_end|>": 32018,
}  # fmt: skip
SEARCH_ORDER = ["<CLS>", "<SEP>", "<EOD>", "<MASK>", "<PAD>", "<s>", "</s>", *MEDITRON_EXTRA_IDS]


@pytest.fixture(scope="module")
def opened(sentence_piece_model: Path) -> OpenedTokenizer:
    return open_tokenizer(sentence_piece_model)


@pytest.fixture(scope="module")
def model(sentence_piece_model: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(sentence_piece_model))


def _original_ids(model: SentencePieceProcessor, text: str) -> list[int]:
    ids: list[int] = []
    while text:
        found = [(text.index(name), SEARCH_ORDER.index(name), name) for name in SEARCH_ORDER if name in text]
        if not found:
            return ids + model.encode_as_ids(text)
        start, _, name = min(found)
        if start > 0:
            ids += model.encode_as_ids(text[:start])
        ids.append(ORIGINAL_IDS[name])
        text = text[start + len(name) :]
    return ids


def _original_document(model: SentencePieceProcessor, example: Conversation) -> tuple[list[int], list[int]]:
    words = {"system": ("system", 0), "user": ("question", 1), "assistant": ("answer", 2)}
    messages = [(words[message.role][0], message.content, words[message.role][1]) for message in example]
    tokens: list[int] = []
    roles: list[int] = []
    for word, content, role in messages:
        ids = _original_ids(model, "<|im_start|>" + word + "\n" + content + "<|im_end|>" + "\n")
        tokens += ids
        roles += [role] * len(ids)
    return tokens, roles


def test_id_table_is_the_original_one(opened: OpenedTokenizer) -> None:
    tokenizer = opened.tokenizer
    assert dict(tokenizer.special_ids) == ORIGINAL_IDS
    assert list(tokenizer.special_ids) == SEARCH_ORDER
    assert tokenizer.vocab_size == 32019
    assert tokenizer.added_tokens == tuple((name, id_) for name, id_ in ORIGINAL_IDS.items() if id_ >= 32000)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, opened.stop_id) == (1, 2, 32004, 32018)


def test_skeleton_of_a_document(opened: OpenedTokenizer, model: SentencePieceProcessor) -> None:
    documents = encode_documents([question_and_answer(question="?", answer="!", system="$")], opened, control=False)
    newline, bare_prefix = model.piece_to_id("<0x0A>"), model.piece_to_id("▁")
    word = {name: model.piece_to_id(f"▁{name}") for name in ("system", "question", "answer")}
    piece = {sign: model.piece_to_id(sign) for sign in "?!$"}
    end = [32018, bare_prefix, newline]
    system = [32017, word["system"], newline, piece["$"], *end]
    question = [32017, word["question"], newline, piece["?"], *end]
    answer = [32017, word["answer"], newline, piece["!"], *end]
    assert documents.tokens.tolist() == system + question + answer
    assert documents.roles.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert documents.tokens.dtype == "<u2"


EVIL = st.text(max_size=20) | st.lists(
    st.sampled_from([*SEARCH_ORDER, "<|im_", "end|>", "<", " ", "\n", "mg", "  ", "▁", "é", "患"]), max_size=8
).map("".join)


@given(question=EVIL, answer=EVIL, system=st.none() | EVIL)
@settings(max_examples=150)
def test_control_gives_the_ids_and_roles_of_the_original_for_any_text(
    opened: OpenedTokenizer, model: SentencePieceProcessor, question: str, answer: str, system: str | None
) -> None:
    example = question_and_answer(question=question, answer=answer, system=system)
    documents = encode_documents([example, example], opened, control=True)
    tokens, roles = _original_document(model, example)
    assert documents.tokens.tolist() == tokens * 2
    assert documents.roles.tolist() == roles * 2
    assert documents.sizes.tolist() == [len(tokens)] * 2


@given(question=EVIL, answer=EVIL)
@settings(max_examples=100)
def test_escape_never_lets_people_write_a_control_token(opened: OpenedTokenizer, question: str, answer: str) -> None:
    documents = encode_documents([question_and_answer(question=question, answer=answer)], opened, control=False)
    control = set(ORIGINAL_IDS.values())
    assert [id_ for id_ in documents.tokens.tolist() if id_ in control] == [32017, 32018] * 2
    expected = sum(_count(text) for text in (question, answer))
    assert documents.special_in_text == expected


def _count(text: str) -> int:
    count = 0
    while found := [(text.index(name), SEARCH_ORDER.index(name), name) for name in SEARCH_ORDER if name in text]:
        start, _, name = min(found)
        text = text[start + len(name) :]
        count += 1
    return count


def test_escape_and_control_agree_where_there_is_nothing_to_escape(
    opened: OpenedTokenizer, model: SentencePieceProcessor
) -> None:
    example = question_and_answer(question="Dose?\n 5 mg < 6 mg [fig]ure".replace("[fig]", "[f]"), answer=" 5 mg ")
    escaped = encode_documents([example], opened, control=False)
    assert escaped.tokens.tolist() == _original_document(model, example)[0]
    assert escaped.special_in_text == 0


def test_escaped_text_decodes_to_what_was_written(opened: OpenedTokenizer) -> None:
    example = question_and_answer(question="say <|im_end|> and </s>", answer="ok", system=None)
    documents = encode_documents([example], opened, control=False)
    assert opened.tokenizer.decode(documents.tokens.tolist()) == opened.template.text(example)
    assert documents.special_in_text == 2


def test_extra_ids_that_are_pieces_already_keep_their_id(sentence_piece_model: Path) -> None:
    tokenizer = open_tokenizer(sentence_piece_model, extra_ids=("▁the", "[new]", "[new]")).tokenizer
    ids = tokenizer.special_ids
    assert ids["▁the"] < 32000
    assert (ids["[new]"], ids["<|im_start|>"], ids["<|im_end|>"]) == (32005, 32006, 32007)
    assert tokenizer.vocab_size == 32008


def test_fingerprint_depends_on_the_extra_ids(sentence_piece_model: Path, opened: OpenedTokenizer) -> None:
    same, other = open_tokenizer(sentence_piece_model), open_tokenizer(sentence_piece_model, extra_ids=())
    assert same.tokenizer.fingerprint == opened.tokenizer.fingerprint != other.tokenizer.fingerprint


def test_no_examples_give_no_documents(opened: OpenedTokenizer) -> None:
    documents = encode_documents([], opened, control=False)
    assert (len(documents.tokens), len(documents.roles), len(documents.sizes)) == (0, 0, 0)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no pieces in it")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        open_tokenizer(tmp_path)


def test_roles_are_those_of_the_role_file() -> None:
    assert {role.name.lower(): int(role) for role in Role} == {"system": 0, "question": 1, "answer": 2, "text": 3}
