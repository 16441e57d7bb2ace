"""The template `model`: a tokenizer's own chat template, rendered as transformers renders it, without transformers.

`turns` finds the answers in its text. Here a template is loaded: what ends an answer, what a person should know of it, and
whether it writes earlier answers in another way when messages follow. A template that writes no end token is refused where the
tokenizer has none to add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from functools import lru_cache
from pathlib import Path

from medsft.core.data.sources.conversation import Conversation, question_and_answer
from medsft.core.data.tokenizers.chat_markup import with_end_token, with_marks
from medsft.core.data.tokenizers.template import Segment, Template
from medsft.core.data.tokenizers.tokenizer_config import chat_template, named_tokens, read_tokenizer_config
from medsft.core.data.tokenizers.turns import REMEDY, Fill, Messages, RewrittenError, Turns, answer_of
from medsft.errors import DataError

_ANSWER = "2f6c1answer"
_PROBE = question_and_answer("question", _ANSWER)
_THOUGHT = "7b3dthought"
_REASONING = "reasoning_content"
_KEPT_TEXTS = 64
"""Texts of a template that are kept: many documents may begin with the same turns, as questions behind solved examples."""
_LONGEST_KEPT = 2**16
"""Characters of the messages of a text that is kept"""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


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
        raise DataError(f"the tokenizer in {folder} has no chat template", hint=REMEDY)
    clock = _Clock(today or date.today())
    turns = Turns(fill=_compiled(source, named, clock), reads_reasoning=_REASONING in source)
    answer = answer_of(turns, _PROBE)
    ending = answer.partition(_ANSWER)[2] if _ANSWER in answer else answer
    stop, missing = _end_token(ending, special_strings, added_strings, named.get("eos_token", ""))
    end = stop if missing else ""
    marks = None if end else _own_marks(turns, source, named, clock, stop)
    turns = replace(turns, marks=marks, end=end, by_message=_by_message(source, named, clock))
    turns = replace(turns, rewrites=_rewrites(turns))
    pattern = re.compile("|".join(map(re.escape, dict.fromkeys((*special_strings, stop)))))

    def write(conversation: Conversation, add_generation_prompt: bool, only_last: bool) -> tuple[Segment, ...]:
        return turns.write(conversation, pattern, add_generation_prompt=add_generation_prompt, only_last=only_last)

    return Template(
        name="model",
        special_tokens=(),
        stop_token=stop,
        jinja=with_end_token(source, end) if end else source,
        marked_jinja=source if marks else _marked(source, end),
        joint=True,
        notes=tuple(_notes(turns, clock, source)),
        date=clock.today.isoformat() if clock.written else "",
        write=write,
    )


def _own_marks(turns: Turns, source: str, named: Mapping[str, str], clock: _Clock, stop: str) -> Callable[[str], Fill] | None:
    """Return what compiles the template with its own marks of answers made visible; None where they leave out the end token."""
    if not _GENERATION.search(source):
        return None

    @lru_cache(maxsize=4)
    def marks(sign: str) -> Fill:
        return _compiled(source, named, clock, mark=sign)

    answer = answer_of(replace(turns, marks=marks), _PROBE)
    return marks if stop in answer else None


def _by_message(source: str, named: Mapping[str, str], clock: _Clock) -> Callable[[str], Fill] | None:
    """Return what compiles the template with a sign between messages; None where it does not write them one by one."""

    @lru_cache(maxsize=4)
    def compiled(sign: str) -> Fill:
        return _compiled(source, named, clock, between=sign)

    try:
        compiled("-")
    except DataError:
        return None
    return compiled


def _rewrites(turns: Turns) -> bool:
    """Whether the template writes an answer in another way when a turn follows, be it one that holds no thought."""
    with suppress(DataError):  # it knows no several turns, which is for the rows that have them to say
        try:
            turns.split((*_PROBE, *_PROBE))
        except RewrittenError as error:
            return error.when_it_goes_on
    return False


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
            hint=f'name one in tokenizer_config.json ("eos_token"), or {REMEDY}',
        )
    return eos, True


def _notes(turns: Turns, clock: _Clock, source: str) -> list[str]:
    """What a person should know about documents of this template. Afterwards the clock knows which dates it writes."""
    notes = []
    if turns.end:
        notes.append(f"The chat template writes no end token after an answer: {turns.end} is added there, and trained on.")
    elif turns.marks is None and _GENERATION.search(source):
        notes.append("The chat template's marks of answers leave out their end token, which is trained on all the same.")
    with suppress(DataError):  # a date may stand in the system message only; some templates know none
        turns.split(question_and_answer("question", _ANSWER, "system"))
    if clock.written:
        dates = ", ".join(f"`{text}`" for text in clock.written.values())
        notes.append(
            f"The chat template writes the date into every document: {dates}. The same data give another set on another day; "
            f"--template_date {clock.today.isoformat()} keeps this one."
        )
    if "</think>" in source:
        thinking = question_and_answer("question", f"<think>\n{_THOUGHT}\n</think>\n\n{_ANSWER}")
        if _THOUGHT not in answer_of(turns, thinking):
            notes.append("The chat template leaves out what stands before </think> in an answer: it is not trained on.")
    return notes


def _marked(source: str, end: str) -> str:
    """The template with each answer between marks that are put around it, in the place of its own."""
    own_marks = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
    plain = own_marks.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", source)
    return with_marks(plain, end)


def _compiled(source: str, named: Mapping[str, str], clock: _Clock, *, mark: str = "", between: str = "") -> Fill:
    """A function (messages, add_generation_prompt) -> text that raises DataError. See `sandbox`."""
    import jinja2

    from medsft.core.data.tokenizers.sandbox import compile_template

    try:
        filled = compile_template(source, named, clock.strftime, mark=mark, between=between)
    except jinja2.TemplateError as error:
        raise DataError(f"the tokenizer's chat template is not valid jinja: {error}", hint=REMEDY) from None

    @lru_cache(maxsize=_KEPT_TEXTS)
    def fill_once(fields: tuple[tuple[tuple[str, str], ...], ...], add_generation_prompt: bool) -> str:
        messages = [dict(message) for message in fields]
        try:
            return filled(messages, add_generation_prompt)
        except jinja2.TemplateError as error:
            reason = _without_records(str(error), source, messages)
            raise DataError(f"the tokenizer's chat template refuses such a document: {reason}", hint=REMEDY) from None

    def fill(messages: Messages, add_generation_prompt: bool) -> str:
        fields = tuple(tuple(message.items()) for message in messages)
        long = sum(len(text) for message in messages for text in message.values()) > _LONGEST_KEPT
        return (fill_once.__wrapped__ if long else fill_once)(fields, add_generation_prompt)

    return fill


def _without_records(message: str, source: str, messages: Messages) -> str:
    """The message, unless the template has put words of a document into it."""
    words = {word for one in messages for name, text in one.items() if name != "role" for word in text.split()}
    return message if message in source or words.isdisjoint(message.split()) else "for a reason that quotes it"
