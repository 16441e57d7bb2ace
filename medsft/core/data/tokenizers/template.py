"""How a conversation becomes text, for training, for generation and for the exported tokenizer alike.

`meditron` and `chatml` put each message between two control tokens; they differ in the words for the roles:

    <|im_start|>question\\n ... <|im_end|>\\n

`model` is the tokenizer's own chat template, see `chat_template`. All three are values of one type, `Template`, and
`Template.render` is the only place that makes training text: segments, each with the role of all its tokens. Any number of
them may be answers, and what is trained on follows from the roles alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from medsft.core.data.sources.conversation import Conversation, Message, MessageRole
from medsft.errors import DataError

START, END = "<|im_start|>", "<|im_end|>"


class Role(IntEnum):
    """Whose words a token belongs to, as the role files number it."""

    SYSTEM = 0
    QUESTION = 1
    ANSWER = 2
    TEXT = 3
    """Of a document that is no conversation, such as a guideline: all of it is trained on."""

    @property
    def supervised(self) -> bool:
        """Whether its tokens are trained on whatever `--loss_mask` says."""
        return self in (Role.ANSWER, Role.TEXT)

    def loss_weight(self, loss_mask: float) -> float:
        """Return the weight in the loss of a token with this role, where `loss_mask` is that of tokens outside answers."""
        return 1.0 if self.supervised else loss_mask


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a document that is tokenized on its own. All its tokens get its role."""

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
    """Ends each answer."""
    jinja: str
    """The chat template of an exported tokenizer; renders the same text."""
    marked_jinja: str
    """The same, with each answer between the tags by which transformers finds the tokens that have the role ANSWER."""
    notes: tuple[str, ...] = ()
    """What a person should know about its documents."""
    date: str = ""
    """The day that it writes into documents, YYYY-MM-DD; empty when it writes none."""
    joint: bool = False
    """The segments are tokenized as one text and then cut, as a chat template without control tokens needs."""
    write: Callable[[Conversation, bool, bool], tuple[Segment, ...]] = field(repr=False)
    """What `render` returns for messages, by (conversation, add_generation_prompt, only_last)."""

    def render(
        self, conversation: Conversation, *, add_generation_prompt: bool = False, only_last: bool = False
    ) -> tuple[Segment, ...]:
        """The segments of a document, in their order. Plain text is one, whatever the template: see `encode` for its frame.

        With `add_generation_prompt` the beginning of the assistant's next message follows, from which a model writes it.
        With `only_last` only the last answer that is trained on need be as a model meets it: an earlier one that a chat
        template writes in another way when messages follow is context, with the role QUESTION.
        Raises DataError for a conversation that the template cannot write.
        """
        if conversation and conversation[0].role == "text":
            return tuple(Segment(message.content, Role.TEXT, ((0, len(message.content)),)) for message in conversation)
        return self.write(conversation, add_generation_prompt, only_last)

    def text(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """The whole text of a document."""
        segments = self.render(conversation, add_generation_prompt=add_generation_prompt)
        return "".join(segment.text for segment in segments)


ROLES: Mapping[MessageRole, Role] = {"system": Role.SYSTEM, "user": Role.QUESTION, "assistant": Role.ANSWER}
"""The role of the tokens of a message."""


def with_reasoning(message: Message) -> tuple[str, str, str, str]:
    """Return the parts of an answer that thinks first, as Qwen3 and R1 write it; the first and the third are no person's words.

    Where a tokenizer has tokens for <think> and </think>, these are written with them.
    """
    return "<think>\n", message.reasoning, "\n</think>\n\n", message.content


_WORDS: Mapping[str, Mapping[Role, str]] = {
    "meditron": {Role.SYSTEM: "system", Role.QUESTION: "question", Role.ANSWER: "answer"},
    "chatml": {Role.SYSTEM: "system", Role.QUESTION: "user", Role.ANSWER: "assistant"},
}


def builtin_template(name: str) -> Template:
    """The template `meditron` or `chatml`."""
    words = _WORDS[name]
    openings = {message_role: f"{START}{words[role]}\n" for message_role, role in ROLES.items()}
    prompt = Segment(openings["assistant"], Role.ANSWER)

    def segment(message: Message) -> Segment:
        if message.role not in ROLES:
            raise DataError(
                f"--template {name} has no place for the role {message.role}",
                hint="use --template model with a tokenizer whose chat template knows it",
            )
        opening, role = openings[message.role], ROLES[message.role] if message.trained else Role.QUESTION
        if not message.reasoning:
            literal = (len(opening), len(opening) + len(message.content))
            return Segment(f"{opening}{message.content}{END}\n", role, (literal,))
        before, reasoning, between, content = with_reasoning(message)
        first, second = len(opening) + len(before), len(opening) + len(before) + len(reasoning) + len(between)
        literals = (first, first + len(reasoning)), (second, second + len(content))
        return Segment(f"{opening}{before}{reasoning}{between}{content}{END}\n", role, literals)

    def write(conversation: Conversation, add_generation_prompt: bool, only_last: bool) -> tuple[Segment, ...]:
        segments = tuple(map(segment, conversation))  # no message is written in another way for those that follow
        return (*segments, prompt) if add_generation_prompt else segments

    return Template(
        name=name,
        special_tokens=(START, END),
        stop_token=END,
        jinja=_jinja(words),
        marked_jinja=_jinja(words, generation=True),
        write=write,
    )


def role_words(chat_template: str) -> Mapping[Role, str] | None:
    """Return the word for each role in the jinja text of `meditron` or `chatml`, marked or not; None for any other template."""
    own = ((words, _jinja(words, generation=marked)) for words in _WORDS.values() for marked in (False, True))
    return next((words for words, jinja in own if jinja == chat_template), None)


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
