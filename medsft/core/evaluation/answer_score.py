"""How likely an answer is that is known: as training and validation count it."""

from __future__ import annotations

import numpy as np

from medsft.core.data.dataset.encode import encode_documents
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.data.tokenizers.template import Role
from medsft.core.evaluation.requests import Score


def score_of_answer(id_: str, conversation: Conversation, opened: OpenedTokenizer) -> Score:
    """Return the request for log p of the last answer of a conversation, with all tokens that the template gives its role.

    Raises `DataError` as `encode_documents` does, ValueError for a conversation without an answer.
    """
    document = encode_documents([conversation], opened, control=False)
    answer = document.roles == Role.ANSWER
    begins = np.flatnonzero(answer & ~np.concatenate([[False], answer[:-1]]))
    if not len(begins):
        raise ValueError("there is no answer in this conversation")
    start = int(begins[-1])
    end = start + int(np.argmin(np.append(answer[start:], False)))
    tokens = tuple(document.tokens.tolist())
    return Score(id=id_, prefix=tokens[:start], continuations=(tokens[start:end],))
