"""Templates that write messages one by one are told by their syntax, and one rendering then tells what many would."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date

import jinja2
import pytest
from jinja2.ext import loopcontrols
from tiny_tokenizers import LLAMA_3, QWEN

from medsft.core.data.sources.conversation import Conversation, Message, question_and_answer
from medsft.core.data.tokenizers import chat_template, sandbox
from medsft.core.data.tokenizers.message_loop import message_loop
from medsft.core.data.tokenizers.template import builtin_template
from medsft.core.data.tokenizers.turns import Fill, Messages, Turns
from medsft.errors import DataError

BODY = "{{ '<' + m.role + '>' + m.content + '</s>' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and system %}{{ '[' + system + ']' }}{% endif %}" + BODY + "{% endfor %}"
)
ONE_BY_ONE = {
    "plain": "{% for m in messages %}" + BODY + "{% endfor %}" + PROMPT,
    "chatml": builtin_template("chatml").jinja,
    "qwen": QWEN,
    "llama 3": LLAMA_3,
    "llama 2": LLAMA_2,
    "counted": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    + BODY
    + "{% endfor %}",
    "an end behind": "a{% for m in messages %}" + BODY + "{% endfor %}{% if not add_generation_prompt %}.{% endif %}",
    "continued": "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}" + BODY + "{% endfor %}" + PROMPT,
    "first": "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}S{% endif %}" + BODY + "{% endfor %}",
}
OTHERS = {
    "last": "{% for m in messages %}" + BODY + "{% if loop.last %}.{% endif %}{% endfor %}",
    "last message": "{% for m in messages %}{% if m == messages[-1] %}!{% endif %}" + BODY + "{% endfor %}",
    "next": "{% for m in messages %}" + BODY + "{{ messages[loop.index0 + 1].role }}{% endfor %}",
    "length": "{{ messages | length }}{% for m in messages %}" + BODY + "{% endfor %}",
    "prompt inside": "{% for m in messages %}" + BODY + "{% if add_generation_prompt %}x{% endif %}{% endfor %}",
    "left behind": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 1 %}" + BODY + "{% endfor %}{{ ns.n }}",
    "behind": "{% for m in messages %}" + BODY + "{% endfor %}{{ messages[0].role }}",
    "some": "{% for m in messages if m.role != 'tool' %}" + BODY + "{% endfor %}",
    "reversed": "{% for m in messages[::-1] %}" + BODY + "{% endfor %}",
    "ended": "{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}" + BODY + "{% endfor %}",
    "twice": "{% for m in messages %}" + BODY + "{% endfor %}{% for m in messages %}{% endfor %}",
    "inside": "{% if true %}{% for m in messages %}" + BODY + "{% endfor %}{% endif %}",
    "another name": "{% set a = messages %}{% set b = a %}{% for m in a %}" + BODY + "{{ b | length }}{% endfor %}",
    "a name of two": "{% set a = messages %}{% set a = a[:3] %}{% for m in a %}" + BODY + "{% endfor %}",
    "a loop that is passed": "{% for m in messages %}{% set l = loop %}{{ l.last }}" + BODY + "{% endfor %}",
    "a macro": "{% macro f() %}{{ messages | length }}{% endmacro %}{% for m in messages %}{{ f() }}" + BODY + "{% endfor %}",
    "a block": "{% for m in messages %}{% block b scoped %}" + BODY + "{% endblock %}{% endfor %}",
}


def conversations() -> list[Conversation]:
    draw = random.Random(5)
    made: list[Conversation] = []
    for number in range(60):
        turns = [Message("system", f"s{number}")] if draw.random() < 0.5 else []
        for _ in range(draw.randint(1, 6)):
            turns.append(Message("user", f"q {draw.randint(0, 99)} <s>"))
            turns += [Message("tool", "seen")] if draw.random() < 0.1 else []
            turns.append(Message("assistant", f"a {draw.randint(0, 99)}", trained=draw.random() < 0.9))
        made.append(tuple(turns[: draw.randint(1, len(turns))] if draw.random() < 0.3 else turns))
    return [*made, made[0][1:], made[1][2:]]


@pytest.mark.parametrize("name", [*ONE_BY_ONE, *OTHERS])
def test_what_one_rendering_tells_is_what_many_tell(name: str) -> None:
    source = (ONE_BY_ONE | OTHERS)[name]
    parsed = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]).parse(source)
    assert (message_loop(parsed) is not None) == (name in ONE_BY_ONE)
    clock, named = chat_template._Clock(date(2026, 1, 2)), {"bos_token": "<s>", "eos_token": "</s>"}
    slow = Turns(fill=chat_template._compiled(source, named, clock))
    by_message = chat_template._by_message(source, named, clock)
    assert (by_message is not None) == (name in ONE_BY_ONE)
    rendered = 0

    def counted(messages: list[dict[str, str]], prompt: bool) -> str:
        nonlocal rendered
        rendered += 1
        return slow.fill(messages, prompt)

    fast = Turns(fill=counted, by_message=by_message)
    for conversation in conversations():
        for prompt, only_last in ((False, False), (False, True), (True, False)):
            rendered = 0
            assert said(fast, conversation, prompt, only_last) == said(slow, conversation, prompt, only_last)
            if name in ONE_BY_ONE and conversation[0].role == "user" and all(m.role != "tool" for m in conversation):
                assert rendered <= 3, "one for the text, and for one answer two"


def test_only_texts_that_many_renderings_have_are_rendered() -> None:
    source = ONE_BY_ONE["plain"]
    clock, named = chat_template._Clock(date(2026, 1, 2)), {"bos_token": "<s>", "eos_token": "</s>"}
    turns = Turns(fill=chat_template._compiled(source, named, clock))
    by_message = chat_template._by_message(source, named, clock)
    assert by_message is not None

    def refusing(sign: str) -> Fill:
        def fill(messages: Messages, prompt: bool) -> str:
            if [message["role"] for message in messages] == ["system"]:
                raise DataError("no user")
            return by_message(sign)(messages, prompt)

        return fill

    turn = question_and_answer("q", "a")
    for conversation in ((Message("system", "s"), *turn, *turn), (turn[1], *turn)):
        assert said(replace(turns, by_message=refusing), conversation, False, False) == said(turns, conversation, False, False)


def test_long_texts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []

    def compiled(*_: object, **__: object) -> Fill:
        return lambda messages, prompt: rendered.append(len(messages[0]["content"])) or "text"

    monkeypatch.setattr(sandbox, "compile_template", compiled)
    fill = chat_template._compiled("", {}, chat_template._Clock(date(2026, 1, 2)))
    for length in (2**15, 2**15, 2**17, 2**17):
        assert fill([{"role": "user", "content": "x" * length}], False) == "text"
    assert rendered == [2**15, 2**17, 2**17]


def said(turns: Turns, conversation: Conversation, prompt: bool, only_last: bool) -> object:
    try:
        return turns.split(conversation, prompt, only_last=only_last)
    except DataError as error:
        return error.message
