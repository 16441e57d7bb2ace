"""Examples to documents: token ids, one role for each id, and where the answer lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.indexed import token_dtype
from medsft.core.data.sources.jsonl import Example
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.fast import TokenIds
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


def encode_documents(examples: Sequence[Example], opened: OpenedTokenizer, *, control: bool) -> EncodedDocuments:
    """Tokenise examples. With `control`, special strings that people wrote become control tokens."""
    rendered = [opened.template.render(example) for example in examples]
    segments = list(chain.from_iterable(rendered))
    encode = _encode_joint if opened.template.joint else _encode_apart
    ids = encode(rendered, opened, control)
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    per_document = np.fromiter(map(len, rendered), np.int64, len(rendered))
    firsts = np.cumsum(per_document) - per_document
    roles = np.fromiter((segment.role for segment in segments), np.uint16, len(segments))
    return EncodedDocuments(
        tokens=(np.concatenate(ids) if ids else np.empty(0)).astype(token_dtype(opened.tokenizer.vocab_size)),
        roles=np.repeat(roles, lengths),
        sizes=np.add.reduceat(lengths, firsts, dtype=np.int32) if rendered else np.empty(0, np.int32),
        special_in_text=sum(map(opened.tokenizer.count_special, segments)),
    )


Rendered = Sequence[tuple[Segment, ...]]


def _encode_apart(rendered: Rendered, opened: OpenedTokenizer, control: bool) -> list[TokenIds]:
    return opened.tokenizer.encode(list(chain.from_iterable(rendered)), control=control)


def _encode_joint(rendered: Rendered, opened: OpenedTokenizer, control: bool) -> list[TokenIds]:
    """Encode [prompt, answer] as one text where that begins with the ids of the prompt alone, else each on its own.

    At generation the model sees the ids of the prompt alone, so these must be a prefix of what it was trained on.
    """
    encode = opened.tokenizer.encode
    prompts = encode([prompt for prompt, _ in rendered], control=control)
    wholes = encode([_joined(prompt, answer) for prompt, answer in rendered], control=control)
    ids = []
    for (_, answer), prompt, whole in zip(rendered, prompts, wholes, strict=True):
        together = np.array_equal(whole[: len(prompt)], prompt)
        ids += [prompt, whole[len(prompt) :] if together else encode([answer], control=control)[0]]
    return ids


def _joined(first: Segment, second: Segment) -> Segment:
    moved = tuple((start + len(first.text), end + len(first.text)) for start, end in second.literal)
    return Segment(first.text + second.text, Role.ANSWER, first.literal + moved)
