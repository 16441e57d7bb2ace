"""What a plan says of the benchmarks that a run is asked at each validation (`--eval_task`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """A benchmark that a run is asked at each validation."""

    name: str
    title: str
    """What people call it."""
    questions: int
    """That are asked."""
    available: int
    """Questions in its files."""
    majority: float
    """Accuracy of always giving the most frequent answer, from 0 to 1."""
    tokens: int
    """That are computed to ask all questions once."""
    longest: int
    """Tokens of the longest document."""
    cut: int
    """Questions whose beginning is cut off, as the model reads no more."""
    limit: int
    """`--eval_limit` when it was prepared."""
    data: tuple[str, ...]
    """SHA-256 of its files."""
    notes: tuple[str, ...]
    """Where the questions come from, and what was decided about them, each in a sentence."""
    fingerprint: str
    """SHA-256 of the `QuestionSet`."""

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TaskPlan:
        """Build it from `plan.json`. Raises TypeError, KeyError."""
        return cls(**{**raw, "data": tuple(raw["data"]), "notes": tuple(raw["notes"])})
