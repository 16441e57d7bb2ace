"""The tokens of several answers to one conversation, for which a template is written once: a chat template takes its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from medsft.core.data.dataset.encode import encode_segments
from medsft.core.data.sources.conversation import Conversation, Message
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.template import Role, Segment

_WRITTEN_ALONE = ("<", "{", "[")
"""Signs of what a template may look for in an answer (`</think>`), and of what may be a special string."""


def answered(
    conversations: Sequence[Conversation], answers: Sequence[Sequence[str]], opened: OpenedTokenizer
) -> list[list[tuple[int, ...]]]:
    """Return for each conversation the ids of it with each of its answers behind it, up to the token that ends the answer.

    Raises DataError for a conversation that the template cannot write.
    """
    rendered = [_rendered(conversation, some, opened) for conversation, some in zip(conversations, answers, strict=True)]
    documents = [document for some in rendered for document in some]
    ids = encode_segments(documents, opened, control=False)
    ends = list(accumulate(map(len, documents), initial=0))
    whole = (_without_end([id_ for part in ids[start:end] for id_ in part.tolist()], opened) for start, end in pairwise(ends))
    return [[next(whole) for _ in some] for some in rendered]


def _rendered(conversation: Conversation, answers: Sequence[str], opened: OpenedTokenizer) -> list[tuple[Segment, ...]]:
    first = opened.template.render((*conversation, Message("assistant", answers[0])), only_last=True)
    written = [first]
    for answer in answers[1:]:
        alone = any(sign in text for sign in _WRITTEN_ALONE for text in (answers[0], answer))
        other = None if alone else _with(first, answers[0], answer)
        written.append(other or opened.template.render((*conversation, Message("assistant", answer)), only_last=True))
    return written


def _with(segments: Sequence[Segment], answer: str, other: str) -> tuple[Segment, ...] | None:
    """Return segments with another last answer; None where this one does not stand in them as it is."""
    for place in reversed(range(len(segments))):
        segment = segments[place]
        if segment.role != Role.ANSWER:
            continue
        for start, end in (*reversed(segment.literal), (0, len(answer))):  # a chat template's begins with the answer
            if segment.text[start:end] == answer:
                text = segment.text[:start] + other + segment.text[end:]
                literal = tuple(one for one in segment.literal if one[1] <= start)
                literal += ((start, start + len(other)),) if segment.literal else ()
                changed = replace(segment, text=text, literal=literal)
                return (*segments[:place], changed, *segments[place + 1 :])
        return None
    return None


def _without_end(ids: list[int], opened: OpenedTokenizer) -> tuple[int, ...]:
    """Return a document up to the token that ends its last answer."""
    if opened.stop_id not in ids:
        return tuple(ids)
    return tuple(ids[: len(ids) - 1 - ids[::-1].index(opened.stop_id)])
