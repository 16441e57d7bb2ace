"""One call of `tokenize`, held as a value, so that a test changes one thing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medsft.core.data.dataset.dataset import TokenizedDataset
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize

_SPEC = frozenset(field.name for field in fields(TokenizeSpec))


@dataclass(frozen=True)
class SetRequest:
    """What to tokenize, where, and the keyword arguments beside."""

    folder: Path
    spec: TokenizeSpec
    options: Mapping[str, Any] = field(default_factory=dict)

    def but(self, *, name: str | None = None, **changes: Any) -> SetRequest:
        """The same with fields of the spec, options, or the name of the set changed."""
        spec = replace(self.spec, **{key: value for key, value in changes.items() if key in _SPEC})
        options = {**self.options, **{key: value for key, value in changes.items() if key not in _SPEC}}
        return SetRequest(self.folder.with_name(name or self.folder.name), spec, options)

    def make(self, **options: Any) -> TokenizedDataset:
        """Make the set or use the one that is there."""
        return tokenize(self.spec, self.folder, **self.options, **options)
