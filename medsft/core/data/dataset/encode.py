"""Conversations to documents: token ids, and one role for each id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.indexed import token_dtype
from medsft.core.data.dataset.joint import encode_jointly
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.fast import TokenIds, as_ids
from medsft.core.data.tokenizers.template import Role, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDocuments:
    """Some documents laid end to end."""

    tokens: npt.NDArray[Any]
    """[sum of sizes]"""
    roles: npt.NDArray[np.uint16]
    """[sum of sizes], values of `Role`"""
    sizes: npt.NDArray[np.int32]
    """Tokens in each document, [documents]"""
    special_in_text: int
    """Special strings that people wrote"""
    rewritten: int = 0
    """Earlier answers that the template writes in another way because messages follow: context, see `Template.render`"""
    unknown: int = 0
    """Tokens that stand for text which the vocabulary cannot spell"""


def encode_documents(
    conversations: Sequence[Conversation], opened: OpenedTokenizer, *, control: bool, only_last: bool = False
) -> EncodedDocuments:
    """Tokenize conversations. With `control`, special strings that people wrote become control tokens.

    With `only_last` only the last answer of each has to be as a model meets it, see `Template.render`.
    """
    documents = [render_document(conversation, opened, only_last=only_last) for conversation in conversations]
    return encode_rendered(documents, opened, control=control)


@dataclass(frozen=True, slots=True)
class Document:
    """A conversation as its template writes it."""

    segments: tuple[Segment, ...]
    rewritten: int
    """Answers of which the text does not have the role"""


def render_document(conversation: Conversation, opened: OpenedTokenizer, *, only_last: bool) -> Document:
    """Write a conversation. Raises DataError as `Template.render` does, and for plain text as `Tokenizer.frame` does."""
    segments = opened.template.render(conversation, only_last=only_last)
    if segments and segments[0].role == Role.TEXT:
        _ = opened.tokenizer.frame
    if not only_last:
        return Document(segments, 0)
    answers = sum(message.role == "assistant" and message.trained for message in conversation)
    return Document(segments, max(0, answers - sum(segment.role == Role.ANSWER for segment in segments)))


def encode_rendered(documents: Sequence[Document], opened: OpenedTokenizer, *, control: bool) -> EncodedDocuments:
    """Tokenize documents that are written already, see `encode_documents`."""
    rendered = [document.segments for document in documents]
    segments = list(chain.from_iterable(rendered))
    ids = encode_segments(rendered, opened, control=control)
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    per_document = np.fromiter(map(len, rendered), np.int64, len(rendered))
    firsts = np.cumsum(per_document) - per_document
    roles = np.fromiter((segment.role for segment in segments), np.uint16, len(segments))
    tokens = (np.concatenate(ids) if ids else np.empty(0)).astype(token_dtype(opened.tokenizer.vocab_size))
    unknown = opened.unknown_id
    return EncodedDocuments(
        tokens=tokens,
        roles=np.repeat(roles, lengths),
        sizes=np.add.reduceat(lengths, firsts, dtype=np.int32) if rendered else np.empty(0, np.int32),
        special_in_text=sum(map(opened.tokenizer.count_special, segments)),
        rewritten=sum(document.rewritten for document in documents),
        unknown=0 if unknown is None else int(np.count_nonzero(tokens == unknown)),
    )


def encode_prompt(conversation: Conversation, opened: OpenedTokenizer) -> list[int]:
    """The ids from which a model writes the assistant's next message: those that stand before it in a training document."""
    segments = opened.template.render(conversation, add_generation_prompt=True)
    ids = encode_segments([segments], opened, control=False)
    return [id_ for of_segment in ids for id_ in of_segment.tolist()]


def encode_segments(rendered: Sequence[Sequence[Segment]], opened: OpenedTokenizer, *, control: bool) -> list[TokenIds]:
    """The ids of each segment of each document, one after the other.

    A document that is plain text, one segment, gets what its tokenizer puts around a text (`Tokenizer.frame`).
    """
    encode = partial(opened.tokenizer.encode, control=control)
    special = opened.tokenizer.special_ids
    joint = opened.template.joint
    ids = encode_jointly(rendered, encode, special) if joint else encode(list(chain.from_iterable(rendered)))
    number = 0
    for segments in rendered:
        if segments and segments[0].role == Role.TEXT:
            before, behind = opened.tokenizer.frame
            ids[number] = np.concatenate([as_ids(before), ids[number], as_ids(behind)])
        number += len(segments)
    return ids
