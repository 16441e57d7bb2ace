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
from typing import NoReturn

from medsft.core.data.records import Example
from medsft.core.data.template import Role, Segment, Template
from medsft.core.data.tokenizer_config import chat_template, named_tokens, read_tokenizer_config
from medsft.errors import DataError

Messages = list[dict[str, str]]
_REMEDY = "use --template meditron or --template chatml"
_PROBE = Example(question="question", answer="2f6c1answer")


def load_chat_template(folder: Path, special_strings: Sequence[str]) -> Template:
    """The chat template of a tokenizer folder.

    `special_strings` are the tokenizer's control tokens. Raises DataError when the folder has no chat template, or one
    that is no valid jinja, or one in which the answer cannot be told from the rest.
    """
    config = read_tokenizer_config(folder)
    source, named = chat_template(folder, config), named_tokens(config)
    if source is None:
        raise DataError(f"the tokenizer in {folder} has no chat template", hint=_REMEDY)
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
    sign = _unused_sign(example)

    def mark(match: re.Match[str]) -> str:
        taken.append(match.group())
        return f"{sign}{len(taken) - 1}{sign}"

    def hide(text: str) -> str:
        return pattern.sub(mark, text)

    hidden = Example(
        question=hide(example.question),
        answer=hide(example.answer),
        system=None if example.system is None else hide(example.system),
    )
    prompt, answer = _split(fill, hidden)
    return _restored(prompt, Role.QUESTION, sign, taken), _restored(answer, Role.ANSWER, sign, taken)


def _unused_sign(example: Example) -> str:
    """A private-use character that is in none of the texts."""
    used = set("".join(_texts(example)))
    return next(sign for sign in map(chr, range(0x10FFFD, 0x100000, -1)) if sign not in used)


def _restored(text: str, role: Role, sign: str, taken: Sequence[str]) -> Segment:
    """Put the strings back where their marks are, as literal text."""
    parts: list[str] = []
    literal: list[tuple[int, int]] = []
    length = 0
    for index, part in enumerate(re.split(f"{sign}([0-9]+){sign}", text)):
        original = taken[int(part)] if index % 2 else part
        if index % 2:
            literal.append((length, length + len(original)))
        parts.append(original)
        length += len(original)
    return Segment("".join(parts), role, tuple(literal))


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
