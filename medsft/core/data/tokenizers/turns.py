"""Where the answers of a conversation lie in the text of a chat template, be there one or several.

Each answer is found by rendering the messages up to it twice: the text with the answer must begin with the text without it
(plus the generation prompt), and the whole text must begin with both. (Of a template that writes messages one by one, as its
syntax shows, one rendering tells all of these, see `message_loop`.) What the answer adds is the assistant's part; of that
what stands between the template's own `{% generation %}` marks has the role ANSWER where it has such marks, else all of it. All
other text has the role QUESTION.

Some templates write an answer in another way when messages follow: those of Qwen3 and R1 leave out what it thought. Then a text
does not have that answer as a model meets it when it is asked for it. Such an answer is refused where it would be trained on.
Where only the last answer of a document is (`only_last`), an earlier one that is rewritten is context: role QUESTION.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.tokenizers.template import Role, Segment, with_reasoning
from medsft.errors import DataError

Messages = list[dict[str, str]]
Fill = Callable[[Messages, bool], str]
"""(messages, add_generation_prompt) -> text. Raises DataError."""
REMEDY = "use --template meditron or --template chatml"
_TOOL = "5c8etool"
_Range = tuple[int, int]


class RewrittenError(DataError):
    """No text of the conversation has each of its answers as the model would write it."""

    def __init__(self, prompt: str, *, when_it_goes_on: bool, always: bool) -> None:
        self.when_it_goes_on = when_it_goes_on
        """The answer is written in another way because messages follow"""
        self.always = always
        """The template does so with every conversation of several turns"""
        if when_it_goes_on:
            message = "writes an earlier answer in another way when messages follow"
            remedy = "use --turns split (a document for each answer), --turns last (train on the last answer only), "
            super().__init__(
                f"the tokenizer's chat template {message}, so no text of the conversation has each answer as the model would "
                "write it",
                hint=f"{remedy}or {REMEDY.removeprefix('use ')}",
            )
            return
        thinks = prompt.rstrip().endswith("<think>")
        super().__init__(
            "the tokenizer's chat template changes the text before an answer when the answer is there, "
            "so the assistant's part cannot be told from the rest"
            + (": its prompt opens <think>, its answers do not go on from there" if thinks else ""),
            hint=REMEDY,
        )


@dataclass(frozen=True, slots=True)
class Turns:
    """A chat template, and what is known of its answers."""

    fill: Fill
    reads_reasoning: bool = False
    """It asks for `reasoning_content`; otherwise what an answer thinks is written into its content"""
    marks: Callable[[str], Fill] | None = None
    """By a sign: the template with that sign in the place of each of its own marks of answers, if these are used"""
    by_message: Callable[[str], Fill] | None = None
    """By a sign: the template with that sign before each message and behind the last, if it writes messages one by one"""
    end: str = ""
    """The token that is added after each answer, for the template writes none"""
    rewrites: bool = False
    """It rewrites an earlier answer in every conversation of several turns"""

    def write(
        self, conversation: Conversation, special: re.Pattern[str], *, add_generation_prompt: bool, only_last: bool
    ) -> tuple[Segment, ...]:
        """Return the segments of a conversation, in which what people wrote that `special` finds is literal.

        Raises DataError: `RewrittenError`, or one that says what the template refuses or leaves out.
        """
        texts = [text for message in conversation for text in (message.content, message.reasoning)]
        if not any(map(special.search, texts)):
            segments = self.split(conversation, add_generation_prompt, only_last=only_last)
        else:
            # With signs in the place of special strings that people wrote; then the strings are put back as literal text.
            taken: list[str] = []
            sign = next(unused_signs(conversation))

            def hide(match: re.Match[str]) -> str:
                taken.append(match.group())
                return f"{sign}{len(taken) - 1}{sign}"

            hidden = tuple(
                message._replace(content=special.sub(hide, message.content), reasoning=special.sub(hide, message.reasoning))
                for message in conversation
            )
            split = self.split(hidden, add_generation_prompt, only_last=only_last)
            segments = [_restored(segment, sign, taken) for segment in split]
        return tuple(segments)

    def split(
        self, conversation: Conversation, add_generation_prompt: bool = False, *, only_last: bool = False
    ) -> list[Segment]:
        """Return the text of a conversation, cut where an answer begins or ends. Raises DataError as `write` does."""
        messages = [self._message(message) for message in conversation]
        text, marked = self.fill(messages, add_generation_prompt), self._marked(conversation, messages, add_generation_prompt)
        _refuse_lost_tools(self.fill, messages, text, add_generation_prompt)
        trained = [index for index, message in enumerate(conversation) if message.role == "assistant" and message.trained]
        must_be_exact = () if add_generation_prompt else trained[-1:] if only_last else trained
        segments: list[Segment] = []
        end = 0
        beginnings = self._beginnings(conversation, messages, text, add_generation_prompt)
        for index, message in enumerate(conversation):
            if message.role != "assistant":
                continue
            last = index + 1 == len(messages) and not add_generation_prompt
            prompt = beginnings(index, True)
            whole = text if last else beginnings(index + 1, False)
            if not (text.startswith(whole) and whole.startswith(prompt) and end <= len(prompt) < len(whole)):
                if index not in must_be_exact:
                    continue
                raise RewrittenError(prompt, when_it_goes_on=not text.startswith(whole), always=self.rewrites)
            if message.trained and message.reasoning.strip() not in whole[end:]:
                raise DataError(
                    "the tokenizer's chat template leaves out what the assistant thinks before an answer",
                    hint=f"leave the reasoning away (--reasoning_key), or {REMEDY}",
                )
            role = Role.ANSWER if message.trained else Role.QUESTION
            begin = len(prompt)
            inside = (
                [(begin, len(whole))] if marked is None else [one for one in marked if end <= one[0] and one[1] <= len(whole)]
            )
            for first, behind in inside:
                cuts = sorted({end, *([begin] if end < begin < first else []), first})
                segments += [Segment(text[a:b], Role.QUESTION) for a, b in pairwise(cuts)]
                segments.append(Segment(text[first:behind] + self.end, role))
                end = behind
        return [*segments, Segment(text[end:], Role.QUESTION)] if end < len(text) else segments

    def _beginnings(
        self, conversation: Conversation, messages: Messages, text: str, add_generation_prompt: bool
    ) -> Callable[[int, bool], str]:
        """Return what gives the text of so many messages: (messages, add_generation_prompt) -> text."""

        def rendered(number: int, prompt: bool) -> str:
            return self.fill(messages[:number], prompt)

        if self.by_message is None or sum(message.role == "assistant" for message in conversation) < 2:
            return rendered
        *_, sign = unused_signs(conversation)
        fill = self.by_message(sign)
        *written, behind = fill(messages, False).split(sign)
        prompted = next(index for index, message in enumerate(conversation) if index and message.role == "assistant")
        prompt_behind = fill(messages[:prompted], True).rpartition(sign)[2]
        first = len(messages) + 1 - len(written)  # messages that are written before the loop: a system message, or none
        if first not in (0, 1) or "".join(written) + (prompt_behind if add_generation_prompt else behind) != text:
            return rendered
        ends = list(accumulate(map(len, written)))

        def cut(number: int, prompt: bool) -> str:
            return text[: ends[number - first]] + (prompt_behind if prompt else behind) if number else rendered(number, prompt)

        return cut

    def _message(self, message: Message) -> dict[str, str]:
        if not message.reasoning:
            return {"role": message.role, "content": message.content}
        if self.reads_reasoning:
            return {"role": message.role, "content": message.content, "reasoning_content": message.reasoning}
        return {"role": message.role, "content": "".join(with_reasoning(message))}

    def _marked(self, conversation: Conversation, messages: Messages, add_generation_prompt: bool) -> list[_Range] | None:
        """Return where the template's own marks are, as ranges of its text; None without marks."""
        if self.marks is None:
            return None
        *_, sign = unused_signs(conversation)
        ranges: list[_Range] = []
        length = 0
        for number, part in enumerate(self.marks(sign)(messages, add_generation_prompt).split(sign)):
            if number % 2 and part:
                ranges.append((length, length + len(part)))
            length += len(part)
        return ranges


def answer_of(turns: Turns, conversation: Conversation) -> str:
    """Return the text of the answers of a conversation. Raises DataError."""
    return "".join(segment.text for segment in turns.split(conversation) if segment.role == Role.ANSWER)


def _refuse_lost_tools(fill: Fill, messages: Messages, text: str, add_generation_prompt: bool) -> None:
    """Raise DataError when a tool's words do not reach the text."""
    tools = [index for index, message in enumerate(messages) if message["role"] == "tool"]
    if all(messages[index]["content"].strip() in text for index in tools):
        return
    # They may be written in another way, such as JSON does: a plain word is then there all the same.
    words = {index: f"{_TOOL}{index}x" for index in tools}
    changed = [message | {"content": words.get(index, message["content"])} for index, message in enumerate(messages)]
    seen = fill(changed, add_generation_prompt)
    if not all(word in seen for word in words.values()):
        raise DataError(
            "the tokenizer's chat template leaves out what a tool says",
            hint="take a tokenizer whose chat template knows the role tool",
        )


def unused_signs(conversation: Conversation) -> Iterator[str]:
    """Yield two private-use characters that are in none of the messages."""
    used = set("".join(text for message in conversation for text in (message.content, message.reasoning)))
    unused = (sign for sign in map(chr, range(0x10FFFD, 0x100000, -1)) if sign not in used)
    yield next(unused)
    yield next(unused)


def _restored(segment: Segment, sign: str, taken: Sequence[str]) -> Segment:
    """Put the strings back where their signs are, as literal text."""
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
