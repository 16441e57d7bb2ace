"""Which answers of several turns are trained on, and how each is written: as a model meets it, or refused by name."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
from tiny_tokenizers import LLAMA_3, QWEN, write_llama_3, write_qwen, write_sentence_piece

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import Conversation, Message, parts_up_to_answers, question_and_answer
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.open import open_tokenizer
from medsft.core.data.tokenizers.template import Role, builtin_template
from medsft.core.data.tokenizers.turns import RewrittenError
from medsft.errors import DataError

THINKING = """\
{%- for message in messages %}{% set after = loop.index0 %}
    {%- if message.role == 'assistant' %}
        {%- set thought = message.reasoning_content if message.reasoning_content is defined else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if messages[after:] | selectattr('role', 'equalto', 'user') | list | length == 0 %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content + '<|im_end|>\\n' }}
    {%- elif message.role != 'tool' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""As Qwen3's: an answer before the last question has no thinking."""
ONE, TWO = question_and_answer("q1", "a1", "s"), question_and_answer("q2", "a2")
TURNS = (*ONE, *TWO)
THOUGHT = (*ONE, Message("user", "q2"), Message("assistant", "a2", reasoning="t2 <|im_end|>"))


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> OpenedTokenizer:
    return open_tokenizer(write_qwen(tmp_path_factory.mktemp("thinking"), template=THINKING), template="model")


def _roles(opened: OpenedTokenizer, conversation: Conversation, *, only_last: bool = False) -> list[tuple[int, str]]:
    segments = opened.template.render(conversation, only_last=only_last)
    return [(int(segment.role), segment.text) for segment in segments]


def test_an_answer_that_is_rewritten_is_refused_where_it_is_trained_on(thinking: OpenedTokenizer) -> None:
    with pytest.raises(RewrittenError, match="writes an earlier answer in another way when messages follow") as caught:
        thinking.template.render(TURNS)
    assert caught.value.always, "it is the template's fault, whichever the row"
    assert "--turns split" in caught.value.hint
    assert "--turns last" in caught.value.hint
    assert _roles(thinking, ONE)[-1] == (Role.ANSWER, "<think>\n\n</think>\n\na1<|im_end|>\n")


def test_with_the_last_answer_alone_an_earlier_one_that_is_rewritten_is_context(thinking: OpenedTokenizer) -> None:
    before = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
    before += "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    last = "<think>\n\n</think>\n\na2<|im_end|>\n"
    assert _roles(thinking, TURNS, only_last=True) == [(Role.QUESTION, before), (Role.ANSWER, last)]
    documents = encode_documents([TURNS, ONE], thinking, control=False, only_last=True)
    assert documents.rewritten == 1
    prompt = thinking.template.render(TURNS[:-1], add_generation_prompt=True)
    assert "".join(segment.text for segment in prompt) == before, "what a model is asked with"


def test_each_part_of_a_split_conversation_ends_with_an_answer_as_it_is_met(thinking: OpenedTokenizer) -> None:
    parts = parts_up_to_answers((*TURNS, Message("user", "thanks")))
    assert parts == (ONE, TURNS)
    answers = [_roles(thinking, part, only_last=True)[-1] for part in parts]
    assert answers == [(Role.ANSWER, f"<think>\n\n</think>\n\na{turn}<|im_end|>\n") for turn in (1, 2)]
    unread = (*ONE[:-1], ONE[-1]._replace(trained=False), *TWO)
    assert parts_up_to_answers(unread) == (unread,)
    assert parts_up_to_answers(TURNS[:1]) == (TURNS[:1],)


def test_answers_that_a_template_does_not_rewrite_are_answers_with_every_choice(tmp_path: Path) -> None:
    opened = open_tokenizer(write_qwen(tmp_path), template="model")
    assert _roles(opened, TURNS) == _roles(opened, TURNS, only_last=True)
    assert [role for role, _ in _roles(opened, TURNS)] == [1, 2, 1, 2]


def test_thoughts_are_given_to_a_template_that_reads_them(thinking: OpenedTokenizer) -> None:
    *_, answer = thinking.template.render(THOUGHT, only_last=True)
    assert answer.text == "<think>\nt2 <|im_end|>\n</think>\n\na2<|im_end|>\n"
    assert [answer.text[a:b] for a, b in answer.literal] == ["<|im_end|>"]
    ids = encode_documents([THOUGHT], thinking, control=False, only_last=True).tokens.tolist()
    token = thinking.tokenizer.token
    assert [token(id_) for id_ in ids].count("<think>") == 1
    assert ids.count(thinking.stop_id) == 5, "what a person wrote ends nothing"


@pytest.mark.parametrize("template", ["meditron", "chatml", "model"])
def test_other_templates_write_thoughts_before_the_content(tmp_path: Path, template: str) -> None:
    opened = open_tokenizer(write_qwen(tmp_path, template=QWEN.replace("<think>", "")), template=template)
    conversation = (Message("user", "q"), Message("assistant", "a </think>", reasoning="t <|im_end|>"))
    *_, answer = opened.template.render(conversation)
    assert "<think>\nt <|im_end|>\n</think>\n\na </think><|im_end|>\n" in answer.text
    documents = encode_documents([conversation], opened, control=False)
    written = opened.template.text(conversation).count("<|im_end|>")
    assert documents.tokens.tolist().count(opened.stop_id) == written - 1, "all but the one that a person wrote"
    names = [opened.tokenizer.token(id_) for id_ in documents.tokens.tolist()]
    assert names.count("<think>") == 1


def test_markers_of_thoughts_are_control_tokens_though_people_cannot_write_them(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = True
    (folder / "tokenizer.json").write_text(json.dumps(content))
    conversation = (Message("user", "<think>"), Message("assistant", "<think>a", reasoning="</think>"))
    for template in ("chatml", "model"):
        opened = open_tokenizer(folder, template=template)
        ids = encode_documents([conversation], opened, control=False)
        names = [opened.tokenizer.token(id_) for id_ in ids.tokens.tolist()]
        assert (names.count("<think>"), names.count("</think>")) == (1, 1)
        assert ids.special_in_text == 3


def test_thoughts_that_a_template_leaves_out_are_refused(tmp_path: Path) -> None:
    source = QWEN.replace("'\\n' + message.content }}", "'\\n' + message.content.split('</think>')[-1].lstrip() }}")
    opened = open_tokenizer(write_qwen(tmp_path, template=source), template="model")
    assert "leaves out what stands before </think>" in opened.template.notes[0]
    with pytest.raises(DataError, match="leaves out what the assistant thinks before an answer") as caught:
        opened.template.render(THOUGHT)
    assert "--reasoning_key" in caught.value.hint


@pytest.mark.parametrize("template", ["chatml", "model"])
def test_an_answer_that_is_only_read_has_the_role_of_a_question(tmp_path: Path, template: str) -> None:
    opened = open_tokenizer(write_qwen(tmp_path), template=template)
    unread = (*ONE[:-1], ONE[-1]._replace(trained=False), *TWO)
    plain, read = (encode_documents([each], opened, control=False) for each in (TURNS, unread))
    assert plain.tokens.tolist() == read.tokens.tolist()
    answers = [[role for role, _ in groupby(each.roles.tolist())].count(Role.ANSWER) for each in (plain, read)]
    assert answers == [2, 1]
    assert read.roles[-1] == Role.ANSWER


def test_an_answer_that_is_only_read_may_be_rewritten(thinking: OpenedTokenizer) -> None:
    unread = (*ONE[:-1], ONE[-1]._replace(trained=False), *TWO)
    assert _roles(thinking, unread) == _roles(thinking, TURNS, only_last=True)


TOOL = (Message("user", "q"), Message("assistant", "call"), Message("tool", ' 5 "mg" '), Message("assistant", "a"))


def test_a_tool_is_read_and_never_trained_on(tmp_path: Path) -> None:
    opened = open_tokenizer(write_llama_3(tmp_path), template="model")
    assert _roles(opened, TOOL)[2][1].startswith('<|start_header_id|>tool<|end_header_id|>\n\n5 "mg"<|eot_id|>')
    assert [role for role, _ in _roles(opened, TOOL)] == [1, 2, 1, 2]
    as_json = LLAMA_3.replace("message['content'] | trim", "message['content'] | tojson")
    opened = open_tokenizer(write_llama_3(tmp_path, template=as_json), template="model")
    assert '" 5 \\"mg\\" "' in opened.template.text(TOOL), "it is there, as JSON has it"


def test_a_tool_that_a_template_does_not_know_is_refused(tmp_path: Path, thinking: OpenedTokenizer) -> None:
    with pytest.raises(DataError, match="leaves out what a tool says"):
        thinking.template.render(TOOL)
    for template in ("meditron", "chatml"):
        opened = open_tokenizer(write_qwen(tmp_path), template=template)
        with pytest.raises(DataError, match=f"--template {template} has no place for the role tool") as caught:
            opened.template.render(TOOL)
        assert "--template model" in caught.value.hint


TEXT = (Message("text", "The dose <|im_end|> is 5 mg.\n\n"),)


@pytest.mark.parametrize(
    ("base", "frame"),
    [
        ("llama-3", ("<|begin_of_text|>", "<|end_of_text|>")),
        ("qwen", (None, "<|im_end|>")),
        ("sentence-piece", ("<s>", "</s>")),
    ],
)
def test_plain_text_has_the_frame_of_its_tokenizer_whatever_the_template(
    tmp_path: Path, base: str, frame: tuple[str | None, str]
) -> None:
    write = {"llama-3": write_llama_3, "qwen": write_qwen, "sentence-piece": write_sentence_piece}[base]
    folder = write(tmp_path)
    seen = []
    for template in ("chatml", "meditron", *([] if base == "sentence-piece" else ["model"])):
        opened = open_tokenizer(folder, template=template)
        documents = encode_documents([TEXT, TURNS, TEXT], opened, control=False)
        first, _, last = (part.tolist() for part in _per_document(documents.tokens, documents.sizes))
        assert first == last
        roles = _per_document(documents.roles, documents.sizes)
        assert set(roles[0].tolist()) == {int(Role.TEXT)}
        begins = [opened.tokenizer.token(first[0])] if frame[0] else []
        assert (begins or [None], opened.tokenizer.token(first[-1])) == ([frame[0]], frame[1])
        body = first[len(begins) : -1]
        assert opened.tokenizer.decode(body).strip() == TEXT[0].content.strip()
        assert opened.stop_id not in body, "what people wrote stays text"
        seen.append(body)
    assert base == "sentence-piece" or seen.count(seen[0]) == len(seen)


def test_add_bos_token_goes_before_the_post_processor(tmp_path: Path) -> None:
    folder = write_llama_3(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"add_bos_token": False}))
    assert open_tokenizer(folder).tokenizer.frame[0] == ()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": LLAMA_3}))
    with pytest.raises(DataError, match="names no end-of-text token"):
        encode_documents([TEXT], open_tokenizer(folder), control=False)


def _per_document(values, sizes):
    import numpy as np

    return np.split(values, np.cumsum(sizes)[:-1])


def test_own_marks_say_what_is_trained_on_in_each_turn(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    opened = open_tokenizer(write_qwen(tmp_path, template=source), template="model")
    assert opened.template.text(TURNS) == builtin_template("chatml").text(TURNS)
    answers = [text for role, text in _roles(opened, TURNS) if role == Role.ANSWER]
    assert answers == ["a1<|im_end|>", "a2<|im_end|>"], "not the line that ends"
    assert opened.template.marked_jinja == source
    special = (*TURNS[:-1], Message("assistant", "b <|im_end|> c"))
    assert [text for role, text in _roles(opened, special) if role == Role.ANSWER][1] == "b <|im_end|> c<|im_end|>"
