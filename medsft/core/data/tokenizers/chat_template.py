"""The template `model`: a tokenizer's own chat template, rendered as transformers renders it, without transformers.

Each answer is found by rendering the messages up to it twice: the text with the answer must begin with the text without it
(plus the generation prompt), and the whole text must begin with both. What the answer adds is the assistant's part; all other
text has the role QUESTION. A conversation is refused in which the template rewrites earlier text when a message follows, for
then no text is what a model meets at each of its turns. So is a template that writes no end token where the tokenizer has none
to add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from pathlib import Path

from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.tokenizers.chat_markup import with_end_token, with_marks
from medsft.core.data.tokenizers.template import Role, Segment, Template
from medsft.core.data.tokenizers.tokenizer_config import chat_template, named_tokens, read_tokenizer_config
from medsft.errors import DataError

Messages = list[dict[str, str]]
Fill = Callable[[Messages, bool], str]
_REMEDY = "use --template meditron or --template chatml"
_ANSWER = "2f6c1answer"
_PROBE = question_and_answer("question", _ANSWER)
_THOUGHT = "7b3dthought"


@dataclass(slots=True)
class _Clock:
    """The day on which a template thinks it is rendered: one for all documents of a set."""

    today: date
    written: dict[str, str] = field(default_factory=dict)
    """What it was asked for: format, and what that gives"""

    def strftime(self, format: str) -> str:
        """Format the day, at midnight."""
        text = datetime.combine(self.today, time()).strftime(format)
        self.written[format] = text
        return text


def load_chat_template(
    folder: Path, special_strings: Sequence[str], *, added_strings: Sequence[str] = (), today: date | None = None
) -> Template:
    """The chat template of a tokenizer folder.

    `special_strings` are the tokenizer's control tokens, `added_strings` all strings that it takes as a whole. `today` is the
    date for a template that writes one. Raises DataError when the folder has no chat template, or one that is no valid jinja,
    or one in which the answer cannot be told from the rest, or has no end.
    """
    config = read_tokenizer_config(folder)
    source, named = chat_template(folder, config), named_tokens(config)
    if source is None:
        raise DataError(f"the tokenizer in {folder} has no chat template", hint=_REMEDY)
    clock = _Clock(today or date.today())
    fill = _compiled(source, named, clock)
    answer = _answer_of(fill, _PROBE)
    ending = answer.partition(_ANSWER)[2] if _ANSWER in answer else answer
    stop, missing = _end_token(ending, special_strings, added_strings, named.get("eos_token", ""))
    pattern = re.compile("|".join(map(re.escape, dict.fromkeys((*special_strings, stop)))))
    end = stop if missing else ""

    def write(conversation: Conversation, add_generation_prompt: bool) -> tuple[Segment, ...]:
        if any(pattern.search(message.content) for message in conversation):
            segments = _split_escaped(fill, conversation, add_generation_prompt, pattern)
        else:
            segments = _split(fill, conversation, add_generation_prompt)
        if not end:
            return tuple(segments)
        return tuple(replace(one, text=one.text + end) if one.role == Role.ANSWER else one for one in segments)

    return Template(
        name="model",
        special_tokens=(),
        stop_token=stop,
        jinja=with_end_token(source, end) if end else source,
        marked_jinja=_marked(source, named, clock, end),
        joint=True,
        notes=tuple(_notes(fill, clock, source, end)),
        date=clock.today.isoformat() if clock.written else "",
        write=write,
    )


def _end_token(ending: str, special: Sequence[str], added: Sequence[str], eos: str) -> tuple[str, bool]:
    """(the token that ends an answer, whether the template does not write it itself); `ending` is what follows an answer."""
    # Blanks are tokens of their own in some vocabularies, and end nothing.
    for tokens in (special, [token for token in added if token.strip()], [eos] if eos else []):
        found = re.search("|".join(map(re.escape, tokens)), ending) if tokens else None
        if found:
            return found.group(), False
    if not eos:
        raise DataError(
            "the tokenizer's chat template writes no end token after an answer, and the tokenizer names none that could be "
            "added: the model would learn never to stop",
            hint=f'name one in tokenizer_config.json ("eos_token"), or {_REMEDY}',
        )
    return eos, True


def _notes(fill: Fill, clock: _Clock, source: str, end: str) -> list[str]:
    """What a person should know about documents of this template. Afterwards the clock knows which dates it writes."""
    notes = []
    if end:
        notes.append(f"The chat template writes no end token after an answer: {end} is added there, and trained on.")
    with suppress(DataError):  # a date may stand in the system message only; some templates know none
        _split(fill, question_and_answer("question", _ANSWER, "system"))
    if clock.written:
        dates = ", ".join(f"`{text}`" for text in clock.written.values())
        notes.append(
            f"The chat template writes the date into every document: {dates}. The same data give another set on another day; "
            f"--template_date {clock.today.isoformat()} keeps this one."
        )
    if "</think>" in source:
        thinking = question_and_answer("question", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}")
        if _THOUGHT not in _answer_of(fill, thinking):
            notes.append("The chat template leaves out what stands before </think> in an answer: it is not trained on.")
    return notes


def _marked(source: str, named: Mapping[str, str], clock: _Clock, end: str) -> str:
    """The template with each answer marked: by its own marks where they are those of training, else by what is around it."""
    if not end and re.search(r"\{%[-+]?\s*generation\b", source):
        sign = _unused_sign(_PROBE)
        segments = _split(_compiled(source, named, clock), _PROBE)
        wanted = "".join(f"{sign}{one.text}{sign}" if one.role == Role.ANSWER else one.text for one in segments)
        if _compiled(source, named, clock, mark=sign)(_messages(_PROBE), False) == wanted:
            return source
    own_marks = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
    plain = own_marks.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", source)
    return with_marks(plain, end)


def _messages(conversation: Conversation) -> Messages:
    return [{"role": message.role, "content": message.content} for message in conversation]


def _split(fill: Fill, conversation: Conversation, add_generation_prompt: bool = False) -> list[Segment]:
    """The text of a conversation, cut where an answer begins or ends. Raises DataError."""
    messages = _messages(conversation)
    text, end = fill(messages, add_generation_prompt), 0
    segments = []
    for index, message in enumerate(conversation):
        if message.role != "assistant":
            continue
        last = index + 1 == len(messages) and not add_generation_prompt
        prompt, whole = fill(messages[:index], True), text if last else fill(messages[: index + 1], False)
        if not (text.startswith(whole) and whole.startswith(prompt) and end <= len(prompt) < len(whole)):
            raise _rewritten(prompt, when_it_goes_on=not text.startswith(whole))
        segments += [Segment(text[end : len(prompt)], Role.QUESTION), Segment(text[len(prompt) : len(whole)], Role.ANSWER)]
        end = len(whole)
    return [*segments, Segment(text[end:], Role.QUESTION)] if end < len(text) else segments


def _rewritten(prompt: str, *, when_it_goes_on: bool) -> DataError:
    if when_it_goes_on:
        return DataError(
            "the tokenizer's chat template writes an earlier answer in another way when messages follow, "
            "so no text of the conversation has each answer as the model would write it",
            hint=_REMEDY,
        )
    thinks = prompt.rstrip().endswith("<think>")
    return DataError(
        "the tokenizer's chat template changes the text before an answer when the answer is there, "
        "so the assistant's part cannot be told from the rest"
        + (": its prompt opens <think>, its answers do not go on from there" if thinks else ""),
        hint=_REMEDY,
    )


def _answer_of(fill: Fill, conversation: Conversation) -> str:
    return "".join(segment.text for segment in _split(fill, conversation) if segment.role == Role.ANSWER)


def _split_escaped(
    fill: Fill, conversation: Conversation, add_generation_prompt: bool, pattern: re.Pattern[str]
) -> list[Segment]:
    """Split with marks in the place of special strings that people wrote, then put the strings back as literal text."""
    taken: list[str] = []
    sign = _unused_sign(conversation)

    def mark(match: re.Match[str]) -> str:
        taken.append(match.group())
        return f"{sign}{len(taken) - 1}{sign}"

    hidden = tuple(message._replace(content=pattern.sub(mark, message.content)) for message in conversation)
    return [_restored(segment, sign, taken) for segment in _split(fill, hidden, add_generation_prompt)]


def _unused_sign(conversation: Conversation) -> str:
    """A private-use character that is in none of the messages."""
    used = set("".join(message.content for message in conversation))
    return next(sign for sign in map(chr, range(0x10FFFD, 0x100000, -1)) if sign not in used)


def _restored(segment: Segment, sign: str, taken: Sequence[str]) -> Segment:
    """Put the strings back where their marks are, as literal text."""
    parts: list[str] = []
    literal: list[tuple[int, int]] = []
    length = 0
    for index, part in enumerate(re.split(f"{sign}([0-9]+){sign}", segment.text)):
        original = taken[int(part)] if index % 2 else part
        if index % 2:
            literal.append((length, length + len(original)))
        parts.append(original)
        length += len(original)
    return Segment("".join(parts), segment.role, tuple(literal))


def _compiled(source: str, named: Mapping[str, str], clock: _Clock, *, mark: str = "") -> Fill:
    """A function (messages, add_generation_prompt) -> text that raises DataError. See `sandbox`."""
    import jinja2

    from medsft.core.data.tokenizers.sandbox import compile_template

    try:
        filled = compile_template(source, named, clock.strftime, mark=mark)
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template is not valid jinja: {error}", hint=_REMEDY) from None

    def fill(messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return filled(messages, add_generation_prompt)
        except jinja2.TemplateError as error:
            reason = _without_records(str(error), source, messages)
            raise DataError(f"the tokenizer's chat template refuses such a document: {reason}", hint=_REMEDY) from None

    return fill


def _without_records(message: str, source: str, messages: Messages) -> str:
    """The message, unless the template has put words of a document into it."""
    words = {word for one in messages for word in one["content"].split()}
    return message if message in source or words.isdisjoint(message.split()) else "for a reason that quotes it"
