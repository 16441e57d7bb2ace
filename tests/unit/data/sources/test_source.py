"""Another kind of file, from a look at its first rows to documents: beyond its source nobody knows of lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from medsft.core.data.dataset import findings, workers
from medsft.core.data.dataset.findings import survey
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.workers import process_chunk, read_chunks
from medsft.core.data.sources.base import BadRow, Block, Row, RowSource
from medsft.core.data.sources.row_format import RowFormat


@dataclass(frozen=True)
class ArraySource:
    """A JSON array of rows, two to a block."""

    path: Path

    def estimate(self) -> npt.NDArray[np.int64]:
        return np.array([len(json.dumps(row)) for row in json.loads(self.path.read_bytes())])

    def blocks(self) -> Iterator[Block]:
        rows = json.loads(self.path.read_bytes())
        for first in range(0, len(rows), 2):
            content = json.dumps(rows[first : first + 2]).encode()
            yield Block(first + 1, content, "", bytes_read=self.path.stat().st_size)

    def rows(self, block: Block) -> Iterator[Row]:
        for number, row in enumerate(json.loads(block.content), block.number):
            yield Row(number, row if isinstance(row, dict) else BadRow("not an object"))

    def place(self, number: int) -> str:
        return f"{self.path}, row {number}"


def test_a_source_of_another_kind(tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"question {number}", "gold": f"answer {number}"} for number in range(5)]
    array, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    array.write_text(json.dumps([*rows[:3], ["x"], *rows[3:], {"prompt": "x"}], indent=1))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source: RowSource = ArraySource(array)
    assert len(source.estimate()) == 7
    spec = TokenizeSpec(data=(array,), tokenizer=hf_folder)
    opened = spec.open_tokenizer()
    (by_line,) = [process_chunk(chunk, spec, opened) for chunk in read_chunks([lines], encode=True)]
    for module in (findings, workers):
        monkeypatch.setattr(module, "open_rows", ArraySource)
    seen = survey([array], RowFormat())
    assert (seen.tally.rows, seen.complete) == (5, True)
    assert f"{array}, row 4: not an object\n{array}, row 7: no key 'gold'" in seen.bad.error().message
    results = [process_chunk(chunk, spec, opened) for chunk in read_chunks([array], encode=True)]
    assert [result.rows for result in results] == [2, 1, 2, 0]
    written = [result.documents.tokens for result in results if result.documents is not None]
    assert by_line.documents is not None
    assert np.concatenate(written).tolist() == by_line.documents.tokens.tolist()
