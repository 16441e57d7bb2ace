"""Conversations of several turns as documents: the ids of transformers, and the role of each of them."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from kept import TEMPLATES
from tiny_tokenizers import BASES, KINDS, write_llama_3, write_qwen

from medsft.core.data.dataset.encode import EncodedDocuments, encode_documents, encode_prompt
from medsft.core.data.sources.conversation import Conversation, Message, question_and_answer
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.export import export_tokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role, Segment

SYSTEM = Message("system", "Be brief.")
TURNS = (
    Message("user", "What is the dose of aspirin?\n\n 5 mg  or 6?"),
    Message("assistant", "Qué é 🙂 患者\r\n- x"),
    Message("user", "And for a child, <|im_end|>, then?"),
    Message("assistant", "None </s> at all."),
)
CONVERSATIONS = (TURNS, (SYSTEM, *TURNS), (*TURNS, *TURNS), TURNS[:2])


def _loaded(opened: OpenedTokenizer, folder: Path) -> Any:
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    export_tokenizer(opened, folder, model_max_length=4096)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": opened.tokenizer.vocab_size}))
    return AutoTokenizer.from_pretrained(folder)


def _encoded(conversation: Conversation, opened: OpenedTokenizer) -> EncodedDocuments:
    # As transformers does it: it takes the name of a control token in a row for the token.
    return encode_documents([conversation], opened, control=True)


def _answers(documents: EncodedDocuments) -> list[list[int]]:
    """The ids of each stretch of one document that has the role of an answer."""
    pairs = zip(documents.roles.tolist(), documents.tokens.tolist(), strict=True)
    return [[id_ for _, id_ in run] for role, run in groupby(pairs, lambda pair: pair[0]) if role == Role.ANSWER]


@pytest.mark.parametrize(("base", "template"), KINDS)
def test_ids_and_mask_are_those_of_transformers(tmp_path: Path, base: str, template: str) -> None:
    opened = open_tokenizer(BASES[base](tmp_path / "base"), template=template)
    loaded = _loaded(opened, tmp_path / "out")
    for conversation in CONVERSATIONS:
        messages = [message._asdict() for message in conversation]
        documents = _encoded(conversation, opened)
        told = loaded.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert told["input_ids"] == documents.tokens.tolist()
        assert told["assistant_masks"] == (documents.roles == Role.ANSWER).astype(int).tolist()


OWN_MARKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content is defined %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM3's and those that TRL patches: what is trained on ends before the line does."""


def test_a_template_with_marks_of_its_own_gives_their_mask(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write_qwen(tmp_path, template=OWN_MARKS)
    opened, loaded = open_tokenizer(folder, template="model"), PreTrainedTokenizerFast.from_pretrained(folder)
    tool = (*TURNS[:2], Message("tool", '{"dose": "5 mg <|im_end|>"}'), Message("assistant", " a\n", reasoning="b </think>"))
    for conversation in (*CONVERSATIONS, tool, (SYSTEM, *tool, *TURNS)):
        messages = [
            {"role": one.role, "content": one.content} | ({"reasoning_content": one.reasoning} if one.reasoning else {})
            for one in conversation
        ]
        documents = _encoded(conversation, opened)
        told = loaded.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert told["input_ids"] == documents.tokens.tolist()
        assert told["assistant_masks"] == (documents.roles == Role.ANSWER).astype(int).tolist()
        assert [answer[-1] for answer in _answers(documents)].count(opened.stop_id) == len(_answers(documents))


@pytest.mark.parametrize(("base", "template"), KINDS)
def test_each_answer_ends_and_is_what_follows_its_prompt(tmp_path: Path, base: str, template: str) -> None:
    opened = open_tokenizer(BASES[base](tmp_path / "base"), template=template)
    for conversation in CONVERSATIONS:
        documents = encode_documents([conversation], opened, control=False)
        ids, answers = documents.tokens.tolist(), _answers(documents)
        assert [answer.count(opened.stop_id) for answer in answers] == [1] * (len(conversation) // 2)
        for index, message in enumerate(conversation):
            if message.role == "assistant":
                prompt = encode_prompt(conversation[:index], opened)
                assert ids[: len(prompt)] == prompt
        assert opened.tokenizer.decode(ids) == opened.template.text(conversation)


@pytest.mark.parametrize("template", ["meditron", "model"])
def test_documents_end_where_their_messages_do(tmp_path: Path, template: str) -> None:
    opened = open_tokenizer(write_qwen(tmp_path / "base"), template=template)
    documents = encode_documents([TURNS[:3], TURNS[:1]], opened, control=False)
    first = documents.roles[: documents.sizes[0]]
    assert Role.ANSWER in first
    assert first[-1] == Role.QUESTION
    assert Role.ANSWER not in documents.roles[documents.sizes[0] :]


def test_an_added_end_token_ends_every_answer(tmp_path: Path) -> None:
    source = (TEMPLATES / "noeos.jinja").read_text()
    opened = open_tokenizer(write_llama_3(tmp_path / "base", template=source), template="model")
    loaded = _loaded(opened, tmp_path / "out")
    for conversation in (TURNS, (SYSTEM, *TURNS)):
        documents = _encoded(conversation, opened)
        assert [answer[-1] for answer in _answers(documents)] == [opened.stop_id] * 2
        messages = [message._asdict() for message in conversation]
        assert loaded.apply_chat_template(messages, return_dict=True)["input_ids"] == documents.tokens.tolist()
        prompt = loaded.apply_chat_template(messages[:-1], return_dict=True, add_generation_prompt=True)["input_ids"]
        assert prompt == documents.tokens[: len(prompt)].tolist()


def test_one_turn_is_encoded_as_one_text(hf_folder: Path) -> None:
    opened = open_tokenizer(hf_folder, template="model")
    conversation = question_and_answer("the dose is 5 mg", "aspirin", "answer the question")
    prompt, answer = opened.template.render(conversation)
    documents = encode_documents([conversation], opened, control=False)
    assert (prompt.role, answer.role) == (Role.QUESTION, Role.ANSWER)
    assert documents.tokens.tolist() == opened.tokenizer.encode([Segment(prompt.text + answer.text, Role.ANSWER)])[0].tolist()
