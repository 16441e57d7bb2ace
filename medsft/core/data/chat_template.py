"""The template `model`: a tokenizer's own chat template, rendered as transformers renders it, without transformers.

The answer is found by rendering twice: the text with the assistant's message must begin with the text without it (plus
the generation prompt). What follows is the assistant's part. A template that rewrites its beginning when an answer
follows has no such part; it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from medsft.core.data.records import Example
from medsft.core.data.template import Role, Segment, Template
from medsft.errors import DataError

Messages = list[dict[str, str]]
_REMEDY = "use --template meditron or --template chatml"
_PROBE = Example(question="question", answer="2f6c1answer")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Stands in for a special string that a person wrote, until the text is rendered. A private-use character that is
# not in anybody's text; a text that does hold it is read as it is, at worst with the wrong piece escaped.
_MARK = "\U0010fff0"


def load_chat_template(folder: Path, special_strings: Sequence[str]) -> Template:
    """The chat template of a tokenizer folder.

    `special_strings` are the tokenizer's control tokens. Raises DataError when the folder has no chat template, or one
    that is no valid jinja, or one in which the answer cannot be told from the rest.
    """
    source, named = _read_sources(folder)
    fill = _compiled(source, named)
    pattern = re.compile("|".join(map(re.escape, special_strings))) if special_strings else None

    def render(example: Example) -> tuple[Segment, ...]:
        if pattern is not None and any(pattern.search(text) for text in _texts(example)):
            return _render_escaped(fill, example, pattern)
        prompt, answer = _split(fill, example)
        return Segment(prompt, Role.QUESTION), Segment(answer, Role.ANSWER)

    ending = _split(fill, _PROBE)[1].partition(_PROBE.answer)[2]
    found = pattern.search(ending) if pattern is not None else None
    stop = found.group() if found else named.get("eos_token", "")
    return Template(
        name="model",
        special_tokens=(),
        stop_token=stop,
        jinja=source,
        joint=True,
        render=render,
        render_prompt=lambda example: fill(_messages(example)[:-1], True),
    )


def _texts(example: Example) -> tuple[str, ...]:
    return tuple(text for text in (example.system, example.question, example.answer) if text is not None)


def _messages(example: Example) -> Messages:
    system = [] if example.system is None else [{"role": "system", "content": example.system}]
    return [
        *system,
        {"role": "user", "content": example.question},
        {"role": "assistant", "content": example.answer},
    ]


def _split(fill: Callable[[Messages, bool], str], example: Example) -> tuple[str, str]:
    """(text before the assistant's part, the assistant's part)."""
    messages = _messages(example)
    prompt, full = fill(messages[:-1], True), fill(messages, False)
    if not full.startswith(prompt) or len(full) == len(prompt):
        raise DataError(
            "the tokenizer's chat template changes the text before an answer when the answer is there, "
            "so the assistant's part cannot be told from the rest",
            hint=_REMEDY,
        )
    return prompt, full[len(prompt) :]


def _render_escaped(fill: Callable[[Messages, bool], str], example: Example, pattern: re.Pattern[str]) -> tuple[Segment, ...]:
    """Render with marks in the place of special strings that people wrote, then put them back as literal text."""
    taken: list[str] = []

    def mark(match: re.Match[str]) -> str:
        taken.append(match.group())
        return f"{_MARK}{len(taken) - 1}{_MARK}"

    def hide(text: str) -> str:
        return pattern.sub(mark, text)

    hidden = Example(
        question=hide(example.question),
        answer=hide(example.answer),
        system=None if example.system is None else hide(example.system),
    )
    prompt, answer = _split(fill, hidden)
    return _restored(prompt, Role.QUESTION, taken), _restored(answer, Role.ANSWER, taken)


def _restored(text: str, role: Role, taken: Sequence[str]) -> Segment:
    pieces, literal, length = [], [], 0
    for index, part in enumerate(re.split(f"{_MARK}([0-9]+){_MARK}", text)):
        if index % 2:
            part = taken[int(part)]
            literal.append((length, length + len(part)))
        pieces.append(part)
        length += len(part)
    return Segment("".join(pieces), role, tuple(literal))


def _read_sources(folder: Path) -> tuple[str, dict[str, str]]:
    """(jinja text, named special tokens such as ``bos_token``) of a tokenizer folder."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            try:
                config |= json.loads((folder / name).read_text("utf-8"))
            except ValueError:
                raise DataError(f"{folder / name} is not valid JSON", hint="copy the tokenizer again") from None
    alone = folder / "chat_template.jinja"
    template = alone.read_text("utf-8") if alone.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise DataError(f"the tokenizer in {folder} has no chat template", hint=_REMEDY)
    named = {name: _content(config[name]) for name in _NAMED_TOKENS if config.get(name) is not None}
    return template, named


def _content(token: str | Mapping[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def _compiled(source: str, named: Mapping[str, str]) -> Callable[[Messages, bool], str]:
    """A function (messages, add_generation_prompt) -> text, in a sandbox, with the names that templates expect."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    # transformers marks the assistant's part with a tag of its own, which renders to its content.
    plain = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", source)
    plain = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", plain)
    try:
        compiled = environment.from_string(plain)
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template is not valid jinja: {error}", hint=_REMEDY) from None

    def fill(messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **named)
        except jinja2.TemplateError as error:
            raise DataError(f"the tokenizer's chat template refuses such a document: {error}", hint=_REMEDY) from None

    return fill
