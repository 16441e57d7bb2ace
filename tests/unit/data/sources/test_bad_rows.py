"""What is said of rows that cannot be used, and of tables whose columns have names of another language."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow
from medsft.core.data.sources.recognize import recognize
from medsft.core.data.sources.row_format import RowFormat


def noted(places: list[str], *, keys: tuple[str, ...] = ("Fall", "Befund")) -> str:
    bad = BadRows()
    for place in places:
        bad.add(place, BadRow("no key 'prompt'", keys))
    return str(bad.error())


def test_of_a_file_of_another_kind_the_first_rows_are_named() -> None:
    text = noted([f"a.csv:{number}" for number in range(2, 40)])
    assert "a.csv:4: no key 'prompt'\n... and 35 more\nThe keys of the first of them: `Fall`, `Befund`" in text
    assert "--question_key KEY --answer_key KEY" in text
    for places in ([f"a.csv:{number}" for number in (2, 5, 6, 7, 9)], ["a.csv:2", "b.csv:3", "a.csv:4", "a.csv:5"]):
        assert all(f"{place}: no key" in noted(places) for place in places), "rows here and there are all of interest"


def test_what_excel_writes_in_another_encoding_is_told_how_it_is_saved() -> None:
    bad = BadRows()
    bad.add("a.csv:5", BadRow("broken UTF-8"))
    hint = bad.error().hint
    assert hint == "save the file as UTF-8 (in Excel: CSV UTF-8), or leave such rows out with --bad_rows skip"


@pytest.mark.parametrize(("question", "answer"), [("Frage", "Antwort"), ("question", "réponse"), ("Pregunta", "Respuesta")])
def test_columns_are_known_in_other_languages(tmp_path: Path, question: str, answer: str) -> None:
    path = tmp_path / "excel.csv"
    path.write_text(f"Fallnummer;{question};{answer}\r\n1;Was?;Das.\r\n2;Wer?;Die.\r\n", encoding="utf-8-sig")
    rows = recognize([path]).rows
    assert isinstance(rows, RowFormat)
    assert (rows.keys.question, rows.keys.answer) == (question, answer)
