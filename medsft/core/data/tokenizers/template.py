"""How an example becomes text, for training, for generation and for the exported tokenizer alike.

`meditron` and `chatml` put each message between two control tokens; they differ in the words for the roles:

    <|im_start|>question\\n ... <|im_end|>\\n

`model` is the tokenizer's own chat template, see `chat_template`. All three are values of one type, `Template`, and
`render` is the only place that makes training text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from medsft.core.data.sources.jsonl import Example

START, END = "<|im_start|>", "<|im_end|>"


class Role(IntEnum):
    """Whose words a token belongs to, as the role files number it."""

    SYSTEM = 0
    QUESTION = 1
    ANSWER = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document that is tokenised on its own. All its tokens get its role."""

    text: str
    role: Role
    literal: tuple[tuple[int, int], ...] = ()
    """Ranges of `text` that people wrote: a special string in there is text, not a control token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One way to write a document."""

    name: str
    special_tokens: tuple[str, ...]
    """Control tokens that it writes and a tokenizer must have."""
    stop_token: str
    """Ends the answer."""
    jinja: str
    """The chat template of an exported tokenizer; renders the same text."""
    marked_jinja: str
    """The same, with the assistant's part between the tags by which transformers finds the tokens that have the role ANSWER."""
    notes: tuple[str, ...] = ()
    """What a person should know about its documents."""
    date: str = ""
    """The day that it writes into documents, YYYY-MM-DD; empty when it writes none."""
    joint: bool = False
    """The segments are tokenised as one text and then cut, as a chat template without control tokens needs."""
    render: Callable[[Example], tuple[Segment, ...]] = field(repr=False)
    """The segments of a training document; the last one is the answer's."""
    render_prompt: Callable[[Example], str] = field(repr=False)
    """The text to generate the answer from (`Example.answer` is not looked at)."""

    def text(self, example: Example) -> str:
        """The whole training text of a document."""
        return "".join(segment.text for segment in self.render(example))


_WORDS: Mapping[str, Mapping[Role, str]] = {
    "meditron": {Role.SYSTEM: "system", Role.QUESTION: "question", Role.ANSWER: "answer"},
    "chatml": {Role.SYSTEM: "system", Role.QUESTION: "user", Role.ANSWER: "assistant"},
}


def builtin_template(name: str) -> Template:
    """The template `meditron` or `chatml`."""
    words = _WORDS[name]

    def message(role: Role, content: str) -> Segment:
        opening = f"{START}{words[role]}\n"
        literal = (len(opening), len(opening) + len(content))
        return Segment(f"{opening}{content}{END}\n", role, (literal,))

    def before_answer(example: Example) -> tuple[Segment, ...]:
        question = message(Role.QUESTION, example.question)
        return (question,) if example.system is None else (message(Role.SYSTEM, example.system), question)

    def render(example: Example) -> tuple[Segment, ...]:
        return (*before_answer(example), message(Role.ANSWER, example.answer))

    def render_prompt(example: Example) -> str:
        return "".join(segment.text for segment in before_answer(example)) + f"{START}{words[Role.ANSWER]}\n"

    return Template(
        name=name,
        special_tokens=(START, END),
        stop_token=END,
        jinja=_jinja(words),
        marked_jinja=_jinja(words, generation=True),
        render=render,
        render_prompt=render_prompt,
    )


def _jinja(words: Mapping[Role, str], *, generation: bool = False) -> str:
    """The chat template in the language of `tokenizer_config.json`, on one line so that no blank can slip in.

    With `generation` answers are marked. The text without is part of what a set was made of (`TokenizeSpec.template_sha256`).
    """
    names = {"system": words[Role.SYSTEM], "user": words[Role.QUESTION], "assistant": words[Role.ANSWER]}
    message = f"{{{{ '{START}' + words[message['role']] + '\\n' + message['content'] + '{END}\\n' }}}}"
    table = "{" + ", ".join(f"'{role}': '{word}'" for role, word in names.items()) + "}"
    return (
        f"{{% set words = {table} %}}"
        "{% for message in messages %}"
        "{% if message['role'] not in words %}"
        "{{ raise_exception('this model knows the roles system, user and assistant') }}"
        "{% endif %}"
        f"{_answers_marked(message) if generation else message}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{START}{words[Role.ANSWER]}\\n' }}}}{{% endif %}}"
    )


def _answers_marked(message: str) -> str:
    marked = f"{{% generation %}}{message}{{% endgeneration %}}"
    return f"{{% if message['role'] == 'assistant' %}}{marked}{{% else %}}{message}{{% endif %}}"
