"""How likely the options of questions are, by the executor that trains: at any layout, with or without an adapter.

    QuestionSet --deal--> streams of each data-parallel rank --Executor.validate--> -log p of tokens --sum--> log p of options

No weight, no moment and no random state is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.parallel.mesh import Mesh
from medsft.core.engine.train.batches import MicroBatch, RankBatch, ScoredTokens, filler_lengths
from medsft.core.engine.train.step import Executor
from medsft.core.evaluation.during_training import judged
from medsft.core.planning.order import deal
from medsft.core.planning.plan import RunPlan
from medsft.core.planning.question_set import QuestionSet, read_questions
from medsft.core.planning.tasks import TaskPlan

Calls = list[list[list[int]]]
"""Documents of each stream of each call of the executor."""


@dataclass(frozen=True, slots=True)
class OptionScores:
    """What a model says of the options of questions, the same on all ranks."""

    log_likelihoods: npt.NDArray[np.float64]
    """Sum of log p over the tokens of each option, in nats, [options]."""
    greedy: npt.NDArray[np.bool_]
    """Whether each token of an option is the most likely one, [options]."""


@dataclass(frozen=True, slots=True)
class OptionScorer:
    """Scores the options of a set of questions."""

    questions: QuestionSet
    calls: Calls
    """Of this rank; every rank has as many calls, with as many streams."""
    executor: Executor
    mesh: Mesh
    fixed_tokens: int | None
    """Streams are filled up to exactly this, as the stages of a pipeline need it."""

    def score(self) -> OptionScores:
        """Return the scores of all options. Every rank must call it."""
        total = torch.zeros(2, int(self.questions.num_options.sum()), dtype=torch.float64)
        for streams in self.calls:
            batch = RankBatch(tuple(map(self._stream, streams)), weight_sum=0.0, tokens=0, supervised_tokens=0)
            for options, nll, correct in self.executor.validate(batch).scored:
                total.index_add_(1, options, torch.stack([-nll, (~correct).float()]).double().cpu())
        log_likelihoods, missed = self.mesh.sum(total.to(self.mesh.device)).cpu().numpy()
        return OptionScores(log_likelihoods, missed == 0)

    def _stream(self, documents: Sequence[int]) -> MicroBatch:
        asked = self.questions
        lengths = asked.lengths[documents]
        filler = self._filler(int(lengths.sum()))
        ends = np.cumsum(asked.lengths)
        parts = [asked.tokens[ends[document] - asked.lengths[document] : ends[document]] for document in documents]
        tokens = np.concatenate([*parts, np.zeros(filler, np.int64)])
        starts = np.zeros(len(ends), np.int64)
        starts[documents] = np.cumsum(lengths) - lengths
        here = np.isin(asked.documents, documents)
        rows = starts[asked.documents[here]] + asked.rows[here]
        nothing = torch.zeros(len(tokens))
        return MicroBatch(
            documents=(),
            tokens=torch.from_numpy(tokens),
            labels=nothing.long(),
            weights=nothing,
            answer=nothing.bool(),
            weighted=torch.empty(0, dtype=torch.int64),
            sequences=PackedSequences.of([*lengths.tolist(), *filler_lengths(filler)]),
            weight_sum=0.0,
            scored=ScoredTokens(*map(torch.from_numpy, (rows, asked.labels[here], asked.options[here]))),
        )

    def _filler(self, tokens: int) -> int:
        if self.fixed_tokens is not None:
            return self.fixed_tokens - tokens
        multiple = self.mesh.layout.tp
        return -tokens % multiple if tokens else multiple  # a rank without a question still takes part in the collectives


def deal_questions(lengths: npt.NDArray[np.int64], *, dp: int, most_tokens: int, streams: int) -> list[Calls]:
    """Return the calls of each data-parallel rank, `streams` streams in each, with about `most_tokens` in a stream at most."""
    needed = max(1, -(-int(lengths.sum()) // most_tokens))
    calls = -(-needed // (dp * streams))
    dealt = deal(lengths, num_bins=calls * dp * streams)
    first = [[(call * dp + rank) * streams for call in range(calls)] for rank in range(dp)]
    return [[dealt[start : start + streams] for start in of_rank] for of_rank in first]


def option_scorers(
    sets: Sequence[QuestionSet], mesh: Mesh, executor_for: Callable[[int], Executor], *, most_tokens: int, streams: int
) -> list[OptionScorer]:
    """Return what scores each of these sets on this rank, in streams of about `most_tokens`, `streams` of them in a call.

    `executor_for` makes an executor for streams of exactly a size, where the layout has a pipeline.
    """
    if not sets:
        return []
    dealt = [deal_questions(one.lengths, dp=mesh.layout.dp, most_tokens=most_tokens, streams=streams) for one in sets]
    largest = max(_largest(one, ranks) for one, ranks in zip(sets, dealt, strict=True))
    size = largest + -largest % mesh.layout.tp
    executor, fixed = executor_for(size), size if mesh.layout.pp > 1 else None
    return [
        OptionScorer(questions, ranks[mesh.dp_rank], executor, mesh, fixed)
        for questions, ranks in zip(sets, dealt, strict=True)
    ]


def _largest(questions: QuestionSet, ranks: Sequence[Calls]) -> int:
    """Return the tokens of the largest stream of any rank."""
    return max(int(questions.lengths[stream].sum()) for calls in ranks for streams in calls for stream in streams)


@dataclass(frozen=True, slots=True)
class TaskAsker:
    """Asks the model that is trained the questions of one benchmark."""

    task: TaskPlan
    scorer: OptionScorer

    def ask(self) -> list[bool]:
        """Return whether each question is answered rightly, the same on all ranks. Every rank must call it."""
        return judged(self.scorer.score().log_likelihoods, self.scorer.questions)


def open_tasks(plan: RunPlan, mesh: Mesh, executor_for: Callable[[int], Executor]) -> tuple[TaskAsker, ...]:
    """Return what asks the benchmarks of a plan on this rank. `executor_for` is that of `option_scorers`.

    Raises DataError where the questions are not there as they were prepared.
    """
    sets = [read_questions(Path(plan.train.folder).parent, task) for task in plan.tasks]
    streams = max(plan.num_micro_batches, mesh.layout.pp) if mesh.layout.pp > 1 else 1
    scorers = option_scorers(sets, mesh, executor_for, most_tokens=plan.estimates.stream_tokens, streams=streams)
    return tuple(map(TaskAsker, plan.tasks, scorers))
