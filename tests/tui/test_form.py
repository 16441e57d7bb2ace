from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.config.check import check
from medsft.core.config.run_config import RunConfig, from_mapping, to_mapping
from medsft.core.data.sources.columns import KeyProposal, Keys
from medsft.core.data.sources.recognize import Recognized, RecognizedFiles
from medsft.core.data.sources.row_format import RowFormat
from medsft.errors import Problem
from medsft.tui.wizard.form import (
    AUTO,
    FIELDS,
    choices_of,
    default_text,
    name_for,
    parse,
    problems_of,
    proposals,
    row_fields,
    to_text,
    told_key,
)
from medsft.tui.wizard.paths import FilePicker, complete
from medsft.tui.wizard.steps import page_of

VALUES = {
    "size": st.floats(0.01, 100),
    "epochs": st.floats(0.01, 100),
    "lr": st.floats(2e-6, 1),
    "seed": st.integers(0, 2**31),
    "tp": st.none() | st.integers(1, 64),
    "truncate": st.sampled_from(["error", "drop", "keep"]),
    "retokenize": st.booleans(),
    "system_key": st.none() | st.from_regex(r"[a-z]{1,9}", fullmatch=True),
    "data": st.lists(
        st.sampled_from(["a.jsonl", "with space.jsonl", "it's.jsonl:0.3", "/abs/b.jsonl:2"]).map(Path), max_size=3
    ).map(tuple),
    "val": st.sampled_from([(), (Path("0.05"),), (Path("a.jsonl"), Path("b.jsonl"))]),
}


@settings(max_examples=100)
@given(st.fixed_dictionaries(VALUES))
def test_what_is_shown_for_a_config_parses_to_the_same_config(values):
    config = from_mapping({"run_name": "x", **to_mapping(RunConfig(**values))})
    texts = {name: to_text(getattr(config, name)) for name in FIELDS}
    parsed, problems = parse(texts)
    assert parsed == config
    assert problems == check(config)


def test_empty_texts_are_the_defaults():
    assert parse(dict.fromkeys(FIELDS, ""))[0] == RunConfig()


def test_a_wrong_text_is_told_once_and_leaves_the_default():
    config, problems = parse({"run_name": "x", "epochs": "many", "seed": "-1", "data": "'open"})
    assert [problem.where for problem in problems] == ["--epochs", "--data", "--seed"]
    assert config.epochs == RunConfig().epochs


def test_shares_are_typed_as_on_the_command_line():
    config, problems = parse({"run_name": "x", "data": "'a b.jsonl:0.3' c.jsonl", "val": ".05", "group_key": "patient"})
    assert problems == []
    assert (config.data_files, config.shares) == ((Path("a b.jsonl"), Path("c.jsonl")), (0.3, 1))
    assert (config.val_files, config.val_share) == ((), 0.05)
    assert FilePicker.of("clinic/a.jsonl:0.3 b.jsonl").marks(Path("clinic/a.jsonl")) == Path("clinic/a.jsonl:0.3")
    wrong = parse({"run_name": "x", "data": "a.jsonl:0", "val": "2", "group_key": "patient"})[1]
    assert [problem.where for problem in wrong] == ["--data", "--val"]


def test_unknown_fields_of_an_old_draft_are_ignored():
    assert parse({"run_name": "x", "of_the_past": "1"}) == (RunConfig(run_name="x"), [])


def test_problems_find_their_field_and_their_page():
    two = Problem("--tp, --pp", "do not fit")
    assert problems_of("tp", [two]) == problems_of("pp", [two]) == [two]
    assert problems_of("lr", [two]) == []
    wanted = {"--size": 0, "--seq": 1, "--epochs": 2, "--id": 2, "--tp, --pp": 3, "--iters": 4, "medsft.toml": 5}
    assert {where: page_of(Problem(where, "")) for where in wanted} == wanted


@pytest.mark.parametrize("name", FIELDS)
def test_the_default_of_a_choice_is_among_its_choices(name):
    if choices_of(name):
        assert (default_text(name) or AUTO) in choices_of(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("clinic/train.jsonl", "clinic"),
        ("a/notes 2024.jsonl.gz", "notes-2024"),
        ("pubmedqa.jsonl", "pubmedqa"),
        ("v1.2.csv.zst", "v1.2"),
        ("clinic/train.parquet", "clinic"),
        ("a.txt", "a.txt"),
    ],
)
def test_a_run_is_named_after_its_data(path, name):
    assert name_for((Path(path),)) == name


def recognized(rows: RowFormat, reason: str = "") -> RecognizedFiles:
    return RecognizedFiles((Path("a.jsonl"),), (Recognized(rows, reason),))


def test_only_what_nobody_typed_and_what_the_rows_do_not_tell_is_proposed():
    config = RunConfig(data=(Path("clinic/train.jsonl"),))
    keys = KeyProposal(question="input", answer="gold", system="system", keys=("input", "gold", "system"))
    unclear = recognized(RowFormat(), "")
    assert proposals({}, {}, config, keys, unclear) == {"run_name": "clinic", "question_key": "input", "system_key": "system"}
    assert "run_name" not in proposals({"run_name": "mine"}, {}, config, keys, unclear)
    assert proposals({"question_key": "q"}, {"question_key": "q"}, config, keys, unclear)["question_key"] == "input"
    told = recognized(RowFormat(name="sharegpt"), "so")
    assert proposals({}, {}, config, keys, told) == proposals({}, {}, config, keys, None) == {"run_name": "clinic"}
    assert proposals({}, {}, config, keys, recognized(RowFormat(), "so")) == {"run_name": "clinic", "system_key": "system"}


def test_keys_are_offered_where_they_mean_something():
    assert row_fields(None, {}) == ["question_key", "answer_key", "system_key", "reasoning_key", "group_key"]
    assert row_fields(recognized(RowFormat(name="text")), {"answer_key": "a"}) == ["answer_key", "text_key", "group_key"]
    shown = row_fields(recognized(RowFormat(name="messages")), {})
    assert {"messages_key", "role_map"} < set(shown)
    assert "question_key" not in shown
    both = RecognizedFiles((Path("a"), Path("b")), (Recognized(RowFormat(name="text"), ""), Recognized(RowFormat(), "")))
    assert {"text_key", "question_key"} < set(row_fields(both, {}))


def test_an_empty_field_shows_the_key_that_the_rows_tell():
    german = RowFormat(keys=Keys(question="Frage", options=("a", "b")))
    told = {field: told_key(field, recognized(german)) for field in row_fields(recognized(german), {})}
    assert told == {"question_key": "Frage", "answer_key": "", "system_key": "", "reasoning_key": "", "group_key": ""}
    assert told_key("options_key", recognized(german)) == "a,b"
    assert told_key("role_map", recognized(german)) == ""
    assert told_key("question_key", None) == ""
    both = RecognizedFiles((Path("a"), Path("b")), (Recognized(german, ""), Recognized(RowFormat(), "")))
    assert told_key("question_key", both) == "", "each file has its own"


def test_paths_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("clinic/b.jsonl", "clinic/a.jsonl", "clinic/a.txt", ".hidden/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    endings = (".jsonl",)
    assert complete("cl", endings) == "clinic/"
    assert complete("clinic/", endings) == "clinic/a.jsonl"
    assert complete("clinic/b", endings) == "clinic/b.jsonl"
    assert complete(f"{tmp_path}/cl", endings) == f"{tmp_path}/clinic/"
    assert complete("nowhere/x", endings) is None
    assert complete("", endings) is None
    assert complete("clinic/a.t", endings) is None
