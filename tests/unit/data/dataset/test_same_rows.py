"""The same rows give the same set, byte by byte, whatever kind of file they stand in, in this process and in others."""

from __future__ import annotations

from pathlib import Path

import pytest
from row_files import FLAT, NESTED

from medsft.core.data.dataset import pool
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.dataset.tokenize import tokenize
from medsft.core.data.sources.columns import Keys
from medsft.core.data.sources.row_format import RowFormat

ROWS = [
    {"prompt": f'question "{number}", é🙂;\nwith a line\t"', "gold": f"answer, {number}\\" * 20, "note": "x" * (number % 3)}
    for number in range(300)
]
CHATS = [
    {
        "id": number,
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["gold"]},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ],
    }
    for number, row in enumerate(ROWS)
]


def files_of(made: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(made.iterdir()) if path.name != "manifest.json"}


@pytest.mark.parametrize("processes", [1, 2])
def test_sets_are_equal(tmp_path: Path, hf_folder: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", 0)
    kinds = (
        {**FLAT, **NESTED} if processes == 1 else {name: {**FLAT, **NESTED}[name] for name in ("excel", "pretty", "parquet")}
    )
    sets = {}
    for name, write in {"as lines": NESTED["jsonl"], **kinds}.items():
        path = tmp_path / f"{name}.rows"
        write(path, ROWS)
        data = tokenize(TokenizeSpec(data=(path,), tokenizer=hf_folder), tmp_path / name / "set", workers=processes)
        assert (data.num_documents, data.manifest.findings.unused_text) == (300, {"note": 200})
        sets[name] = files_of(data.folder)
    assert [name for name, made in sets.items() if made != sets["as lines"]] == []


def test_conversations_are_equal(tmp_path: Path, hf_folder: Path) -> None:
    rows = RowFormat(name="messages", keys=Keys(messages="messages"))
    sets = {}
    for name, write in NESTED.items():
        path = tmp_path / f"{name}.rows"
        write(path, CHATS)
        spec = TokenizeSpec(data=(path,), tokenizer=hf_folder, template="chatml", rows=rows)
        sets[name] = files_of(tokenize(spec, tmp_path / name / "set").folder)
    assert [name for name, made in sets.items() if made != sets["jsonl"]] == []
