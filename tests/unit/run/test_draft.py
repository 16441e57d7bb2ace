from __future__ import annotations

import pytest

from medsft.core.run.draft import Draft, draft_path, load_draft, save_draft


def test_a_draft_comes_back_as_it_was_typed(tmp_path):
    path = tmp_path / "state" / "draft.json"
    draft = Draft({"epochs": "many", "data": "'with space.jsonl'"}, page=3)
    save_draft(path, draft)
    assert load_draft(path) == draft
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"texts": 1, "page": 0}', '{"texts": {}, "page": "x"}'])
def test_a_damaged_draft_is_an_empty_one(tmp_path, text):
    path = tmp_path / "draft.json"
    path.write_text(text)
    assert load_draft(path) == Draft()
    assert load_draft(tmp_path / "nowhere") == Draft()


def test_the_draft_is_kept_in_the_state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert draft_path() == tmp_path / "medsft" / "draft.json"
