"""Questions as documents of token ids, and answers out of what the engine says of them: for benchmarks during training.

Score requests --question_set--> QuestionSet --engine--> log p of each option --judged--> right answers
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medsft.core.evaluation.requests import Score
from medsft.core.planning.question_set import QuestionSet


def question_set(requests: Sequence[Score], gold: Sequence[int]) -> QuestionSet:
    """Return the documents of questions, one request for each, and the tokens that are scored in them; see `QuestionSet`."""
    documents: list[tuple[int, ...]] = []
    scored: list[tuple[int, int, int, int]] = []
    option = 0
    for request in requests:
        first, last = len(documents), len(request.prefix) - 1
        longer = [continuation for continuation in request.continuations if len(continuation) > 1]
        documents += [(*request.prefix, *continuation[:-1]) for continuation in longer] or [request.prefix]
        own = iter(range(first, len(documents)))
        for continuation in request.continuations:
            document = next(own) if len(continuation) > 1 else first
            scored += [(document, last + place, label, option) for place, label in enumerate(continuation)]
            option += 1
    columns = np.array(scored, np.int64).T
    return QuestionSet(
        tokens=np.array([token for document in documents for token in document], np.int64),
        lengths=np.array(list(map(len, documents)), np.int64),
        documents=columns[0],
        rows=columns[1],
        labels=columns[2],
        options=columns[3],
        num_options=np.array([len(request.continuations) for request in requests], np.int64),
        gold=np.array(gold, np.int64),
    )


def judged(log_p: npt.NDArray[np.float64], questions: QuestionSet) -> list[bool]:
    """Return of each question whether its right option is the most likely one; of equally likely ones the first counts.

    `log_p` [options] are the sums of log p over the tokens of each option.
    """
    ends = np.cumsum(questions.num_options)
    spans = zip((ends - questions.num_options).tolist(), ends.tolist(), questions.gold.tolist(), strict=True)
    return [int(np.argmax(log_p[start:end])) == right for start, end, right in spans]
