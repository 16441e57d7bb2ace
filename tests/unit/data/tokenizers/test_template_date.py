"""A chat template that writes the date: another day is another set, and --template_date keeps one."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from kept import TEMPLATES
from set_request import SetRequest
from tiny_tokenizers import write_llama_3

from medsft.core.config.check import check
from medsft.core.config.run_config import from_mapping
from medsft.core.data.dataset.manifest import differences, read_manifest
from medsft.core.data.dataset.spec import TokenizeSpec
from medsft.core.data.tokenizers import chat_template
from medsft.core.planning.plan import _BY_CONTENT
from medsft.errors import DataError


class _Today(date):
    """A day that goes on when a test says so."""

    now = date(2026, 11, 28)

    @classmethod
    def today(cls) -> date:  # type: ignore[override]
        return cls.now


@pytest.fixture
def request_(tmp_path: Path) -> SetRequest:
    folder = write_llama_3(tmp_path / "base", template=(TEMPLATES / "date.jinja").read_text())
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"q {n}", "gold": "a"}) + "\n" for n in range(5)))
    return SetRequest(tmp_path / "sets" / "set", TokenizeSpec(data=(rows,), tokenizer=folder, template="model"), {"workers": 1})


def _on(request: SetRequest, day: str) -> SetRequest:

    return request.but(template_date=day)


def test_the_date_is_in_the_documents_in_the_recipe_and_in_a_warning(request_: SetRequest) -> None:
    data = _on(request_, "2026-11-27").make()
    opened = _on(request_, "2026-11-27").spec.open_tokenizer()
    assert "Today Date: 27 Nov 2026" in opened.tokenizer.decode(data.tokens(0).tolist())
    manifest = read_manifest(data.folder)
    assert manifest is not None
    assert manifest.recipe is not None
    assert manifest.recipe.template_date == "2026-11-27"
    [note] = manifest.notes
    assert "`27 Nov 2026`" in note
    assert "--template_date 2026-11-27" in note


def test_another_day_is_another_set_and_the_flag_keeps_the_first(request_: SetRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import medsft.core.data.tokenizers.chat_template as module

    monkeypatch.setattr(module, "date", _Today)
    first = request_.make()
    monkeypatch.setattr(_Today, "now", date(2026, 11, 29))
    with pytest.raises(DataError, match="it was 2026-11-28, now 2026-11-29; --template_date 2026-11-28 keeps that day"):
        request_.make()
    assert _on(request_, "2026-11-28").make().fingerprint == first.fingerprint


def test_a_set_older_than_the_record_is_named_stale(request_: SetRequest) -> None:
    data = _on(request_, "2026-11-27").make()
    path = data.folder / "manifest.json"
    raw = json.loads(path.read_text())
    wanted = read_manifest(data.folder)
    del raw["recipe"]["template_date"], raw["notes"]
    path.write_text(json.dumps(raw))
    made = read_manifest(data.folder)
    assert made is not None
    assert wanted is not None
    assert wanted.recipe is not None
    [line] = differences(made, wanted.recipe)
    assert "it was not recorded, now 2026-11-27" in line


def test_a_template_without_a_date_has_none(tmp_path: Path) -> None:
    folder = write_llama_3(tmp_path)
    template = chat_template.load_chat_template(folder, ("<|eot_id|>",), today=date(2026, 11, 28))
    assert (template.date, template.notes) == ("", ())


def test_the_flag_is_checked_and_makes_no_other_run() -> None:
    problems = check(from_mapping({"run_name": "x", "template_date": "28.11.2026"}))
    assert [problem.where for problem in problems] == ["--template_date"]
    assert not check(from_mapping({"run_name": "x", "template_date": "2026-11-28"}))
    assert "template_date" in _BY_CONTENT
