"""Chat templates come with models: none may hang, fill the memory, or end medsft otherwise than with an error."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from medsft.core.data.sources.conversation import question_and_answer
from medsft.core.data.tokenizers import sandbox
from medsft.core.data.tokenizers.chat_template import load_chat_template
from medsft.core.data.tokenizers.sandbox import compile_template
from medsft.errors import DataError

MESSAGES = [{"role": "user", "content": "hello"}]
GROWING = "{% set n = namespace(s='aa') %}{% for i in range(90) %}{% set n.s = GROWN %}{% endfor %}{{ n.s }}"


def fill(source: str, **named: str) -> str:
    return compile_template(source, named, lambda format: f"<{format}>")(MESSAGES, True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "loops or counts without end"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "loops without end"),
        ("{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}", "loops without end"),
        ("{% set l = range(99999)|list %}{% for i in l %}{% for j in l %}{% set k = j %}{% endfor %}{% endfor %}", "loops"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "calls itself for ever"),
        ("{% for m in [[]] recursive %}{{ loop([[]]) }}{% endfor %}", "calls itself for ever"),
        ("{{ 'x' * 10**10 }}", "text without end"),
        ("{{ 10**10 * 'x' }}", "text without end"),
        ("{{ ([1] * 10**9)|length }}", "text without end"),
        ("{{ 9 ** 9999999 }}", "number without end"),
        ("{{ 'x'|center(10**9) }}", "more than a million"),
        ("{{ 'x'.ljust(10**9) }}", "more than a million"),
        ("{{ 'a\\tb'.expandtabs(10**9) }}", "more than a million"),
        ("{{ '%0999999999d' % 1 }}", "format without end"),
        ("{{ '%*d' % (10**9, 1) }}", "format without end"),
        ("{{ '%0999999999d'|format(1) }}", "format without end"),
        ("{{ '{:>999999999}'.format(1) }}", "format without end"),
        ("{{ '{:>{w}}'.format(1, w=10**9) }}", "format within a format"),
        ("{{ strftime_now('%999999999d') }}", "format without end"),
        ("{{ messages|tojson(indent=10**9) }}", "more than a million|indents without end"),
        (GROWING.replace("GROWN", "n.s ~ n.s"), "without end"),
        (GROWING.replace("GROWN", "n.s + n.s"), "without end"),
        (GROWING.replace("GROWN", "n.s.replace('a', n.s)"), "without end"),
        (GROWING.replace("GROWN", "n.s|replace('a', n.s)"), "without end"),
        (GROWING.replace("GROWN", "n.s.join([n.s, n.s])"), "without end"),
        (GROWING.replace("GROWN", "[n.s, n.s]|join"), "without end"),
        (GROWING.replace("{% set n.s = GROWN %}", "{% set t %}{{ n.s~n.s }}{% endset %}{% set n.s = t %}"), "without end"),
        ("{% set s = 'x' * 10**7 %}{% for i in range(1000) %}{{ s }}{% endfor %}", "without end"),
        ("{{ lipsum(n=10**6) }}", "'lipsum' is undefined"),
        ("{% include 'other' %}", "TypeError while it was rendered"),
        ("{{ 1 // 0 }}", "ZeroDivisionError while it was rendered"),
        ("{{ ''.__class__.__mro__ }}", "undefined|unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{% for a in [1] %}" * 60 + "{% endfor %}" * 60, "SyntaxError"),
        ("x" * (sandbox.MAX_SOURCE + 1), "characters"),
    ],
)  # fmt: skip
def test_what_has_no_end_is_refused(source: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_STEPS", 20_000)  # so that it is soon seen
    monkeypatch.setattr(sandbox, "_SECONDS", 0.5)
    with pytest.raises(jinja2.TemplateError, match=reason):
        fill(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content']|trim }}{% endfor %}", "<s><|user|>hello"),
        ("{{ 'a' ~ 1 ~ none }}{{ '-' * 3 }}{{ 'a' + 'b' }}{{ 2 * 3 + 2 ** 3 }}{{ '%s %d' % ('c', 4) }}", "a1None---ab14c 4"),
        ("{{ 'a b'.split() | join('+') }}{{ ', '.join(['a', 'b']) }}{{ 'aba'.replace('a', 'c', 1) }}", "a+ba, bcba"),
        ("{{ messages | map(attribute='role') | join('|') }}{{ messages | join('|', attribute='content') }}", "userhello"),
        ("{{ '{}-{x}'.format(1, x=2) }}{{ 'abc'|replace('b', '') }}{{ 'a\nb'|indent(2) }}{{ [1, 2]|sum }}", "1-2aca\n  b3"),
        ('{{ {"b": "<é>", "a": [1]}|tojson }}', '{"b": "<é>", "a": [1]}'),
        (
            "{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{{ loop.last }}{% endfor %}",
            "0False1False2False",
        ),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('a') }}{% set b %}{{ m(1) }}{% endset %}{{ b }}", "[a][1]"),
        ("{{ strftime_now('%d %b %Y') }}", "<%d %b %Y>"),
        ("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}", "1False"),
        ("{{ 'generation' }}{# {% generation %} #}{% raw %}{% generation %}{% endraw %}", "generation{% generation %}"),
        ("{% for i in range(99999) %}{% endfor %}done", "done"),
    ],
)
def test_what_templates_do_is_done(source: str, text: str) -> None:
    assert fill(source, bos_token="<s>") == text


def test_a_row_of_the_largest_size_passes() -> None:
    long = [{"role": "user", "content": "x " * 2**24}]
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content|trim + '\n' }}{% endfor %}"
    assert len(compile_template(source, {}, str)(long, True)) == 2**25 + 8


def _folder(path: Path, template: object, **files: bytes | str) -> Path:
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": template}))
    for name, content in files.items():
        file = path / name.replace("__", ".")
        file.write_bytes(content) if isinstance(content, bytes) else file.write_text(content)
    return path


def test_a_template_that_hangs_is_an_error_of_the_data(tmp_path: Path) -> None:
    """With the limits as they are: some seconds, and not a day."""
    folder = _folder(tmp_path, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match="refuses such a document: it loops without end"):
        load_chat_template(folder, ("</s>",))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"chat_template__jinja": b"\xff\xfe{\x00"}, "chat_template.jinja is not UTF-8"),
        ({"tokenizer_config__json": "[1]"}, "tokenizer_config.json holds no JSON object"),
        ({"tokenizer_config__json": "[" * 100_000}, "tokenizer_config.json is not valid JSON"),
        ({"tokenizer_config__json": b"\xff"}, "tokenizer_config.json is not UTF-8"),
        ({"special_tokens_map__json": "1"}, "special_tokens_map.json holds no JSON object"),
    ],
)
def test_odd_files_are_named(tmp_path: Path, files: dict[str, bytes | str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_chat_template(_folder(tmp_path, "x", **files), ())


@pytest.mark.parametrize("template", [["x"], [{"name": "default"}], [{"template": "x"}], {"default": "x"}, 7, None, []])
def test_a_list_without_a_default_template_has_none(tmp_path: Path, template: object) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        load_chat_template(_folder(tmp_path, template), ())


def test_a_folder_in_place_of_a_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(DataError, match=r"chat_template\.jinja is a folder, not a file"):
        load_chat_template(_folder(tmp_path, "x"), ())


def test_no_message_quotes_a_row(tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}{% if 'secret' in m.content %}{{ raise_exception('not ' + m.content) }}{% endif %}"
        "{{ m.content }}</s>{% endfor %}"
    )
    template = load_chat_template(_folder(tmp_path, source), ("</s>",))
    with pytest.raises(DataError, match="for a reason that quotes it") as caught:
        template.render(question_and_answer(question="secret diagnosis", answer="a"))
    assert "diagnosis" not in str(caught.value)
