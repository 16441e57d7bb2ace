"""What a plan says of rows: refused as tokenizing would refuse them, and what a person may not have meant."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from role_sets import write_conversations

from medsft.core.config.run_config import RunConfig
from medsft.core.data.dataset import findings
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.data.dataset.outlines import cut_lengths
from medsft.core.planning import planner
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan, preview
from medsft.core.planning.sets import training_set
from medsft.core.settings import Settings
from medsft.core.text.plan import plan_rows
from medsft.core.workflow import tokenize_sets
from medsft.errors import DataError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Settings]:
    """A base model that has no weights, and JSONL."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    return tiny.plannable(tmp_path, global_batch=8)


def test_what_tokenizing_would_refuse_is_refused_ahead(project, tmp_path):
    config, settings = project
    for name, content in (
        ("keys", b'{"q": "x", "gold": "y"}\n'),
        ("array", b'[{"prompt": "x"}]'),
        ("csv", b"a;b\nc;d\n"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        messages = []
        for flag in ("data", "val"):
            asked = replace(config, **{flag: (path,)})
            with pytest.raises(DataError, match=re.escape(str(path))) as caught:
                make_plan(asked, settings, ahead=True)
            assert caught.value.exit_code == 3
            messages.append(str(caught.value))
            assert any(problem.where == f"--{flag}" for problem in preview(asked, settings).problems)
        assert messages[0] == messages[1]
    good = tmp_path / "mixed"
    good.write_bytes(b'{"prompt": "x", "gold": "y"}\n{"prompt": "x"}\n')
    plan = make_plan(replace(config, data=(good,), bad_rows="skip"), settings, ahead=True)
    assert "--data: 1 of the first 2 rows cannot be used and will be skipped." in plan.warnings
    assert plan.train.documents == 1


def test_only_the_first_rows_are_looked_at_ahead(project, tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "SURVEYED_ROWS", 5)
    config, settings = project
    path = tmp_path / "late.jsonl"
    path.write_bytes((tmp_path / "train.jsonl").read_bytes() + b'{"prompt": "x", "gold": "y", "cot": "z"}\nbad\n')
    plan = make_plan(replace(config, data=(path,)), settings, ahead=True)
    assert plan.train.documents == 42
    assert "cot" not in "\n".join(plan.warnings)


def test_a_system_key_that_no_row_has_is_refused_ahead_where_all_rows_were_seen(project, monkeypatch):
    config, settings = project
    config = replace(config, system_key="sytem")
    with pytest.raises(DataError, match="no row has the key 'sytem'"):
        make_plan(config, settings, ahead=True)
    monkeypatch.setattr(findings, "SURVEYED_ROWS", 5)
    warnings = make_plan(config, settings, ahead=True).warnings
    assert "--data: 5 of the first 5 rows have no system message." in warnings


def test_a_validation_set_is_estimated_ahead(project):
    config, settings = project
    plan = make_plan(config, settings, ahead=True)
    assert plan.val is not None
    assert plan.val.documents == 11
    tokenize_sets(replace(config, val=()), settings)
    plan = make_plan(config, settings, ahead=True)
    assert (plan.val.documents, plan.val.fingerprint) == (11, "")
    assert "The validation set is not tokenized yet" in "\n".join(plan.warnings)


def test_a_set_of_other_files_or_keys_is_refused_ahead(project, tmp_path):
    config, settings = project
    tokenize_sets(config, settings)
    make_plan(config, settings, ahead=True)
    make_plan(replace(config, data=(), val=()), settings, ahead=True)
    for changes, message in (
        ({"question_key": "other"}, "--data: the tokenized set in .* was made of other files or keys than these"),
        ({"data": config.val}, "--data: the tokenized set in .* was made of other files or keys than these"),
        ({"val": config.data}, "--val: the tokenized set in .* was made of other files or keys than these"),
        ({"val": (tmp_path / "none",)}, "none: cannot be read: No such file"),
        ({"data": (tmp_path,)}, "is a folder"),
    ):
        with pytest.raises(DataError, match=message):
            make_plan(replace(config, **changes), settings, ahead=True)


def test_a_set_that_will_be_made_again_is_estimated_ahead(project):
    config, settings = project
    tokenize_sets(config, settings)
    other = replace(config, data=config.val, val=config.data, retokenize=True)
    plan = make_plan(other, settings, ahead=True)
    assert (plan.train.documents, plan.train.fingerprint, plan.val.documents) == (11, "", 40)


@pytest.mark.parametrize("ahead", [True, False])
def test_rows_that_a_person_may_not_have_meant_are_warned_about(project, tmp_path, ahead):
    config, settings = project
    rows = [{"prompt": f"w{n} w{n + 1}", "gold": f"w{n}", "cot": "w1 w2"} for n in range(8)]
    train, val = tmp_path / "rows.jsonl", tmp_path / "known.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    val.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    config = replace(config, data=(train, train), val=(val,))
    if not ahead:
        tokenize_sets(config, settings)
    warnings = make_plan(config, settings, ahead=ahead).warnings
    for expected in (
        "--data: the text under these keys is not used: `cot` (in 18 of 18 rows).",
        "--data: 10 of 18 rows repeat an earlier one.",
        f"--data: {train} is given twice.",
        "--val: 3 of 3 rows are in --data too: the validation loss will look too good.",
    ):
        assert expected in warnings


def _rows(path: Path, *, questions: list[int]) -> Path:
    rows = [{"prompt": " ".join(["w1"] * question), "gold": " ".join(["w2"] * 8)} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("flag", ["data", "val"])
@pytest.mark.parametrize("truncate", ["keep", "drop", "error"])
@pytest.mark.parametrize("loss_mask", [0.0, 0.5])
def test_a_run_with_nothing_to_learn_is_refused(project, tmp_path, truncate, loss_mask, flag):
    config, settings = project
    path = _rows(tmp_path / "long.jsonl", questions=[40] * 9)
    config = replace(config, seq=16, truncate=truncate, loss_mask=loss_mask, **{flag: (path,)})
    other = "val" if flag == "data" else "data"
    config = replace(config, **{other: (_rows(tmp_path / "short.jsonl", questions=[2] * 9),)})
    tokenize_sets(config, settings)
    with pytest.raises(DataError, match=rf"--{flag}: (not|no document)") as caught:
        make_plan(config, settings)
    if truncate == "keep":
        assert "not one of the 9 documents has an answer token to train on" in str(caught.value)


def test_what_keep_cuts_is_counted_and_batches_without_an_answer_are_named(project, tmp_path):
    config, settings = project
    path = _rows(tmp_path / "long.jsonl", questions=[2, 3, 10, *[40] * 13])
    config = replace(config, data=(path,), val=(), seq=20, truncate="keep", global_batch=2, iters=8)
    tokenize_sets(config, settings)
    plan = make_plan(config, settings)
    cut = [warning for warning in plan.warnings if "cut at --seq" in warning]
    lost = "Answers lost whole: 13; in part: 1, of these without their end: 1."
    assert cut == [f"--data: 14 documents are cut at --seq 20. {lost}"]
    chosen = training_set(config)
    empty = sum(not chosen.subset.supervised[chosen.order.batch(k)].any() for k in range(plan.num_iterations))
    assert empty >= 5
    assert any(warning.startswith(f"In {empty} of the first {plan.num_iterations} iterations") for warning in plan.warnings)
    learning = make_plan(replace(config, loss_mask=0.1), settings)
    assert not any("iterations no document" in warning for warning in learning.warnings)


@pytest.mark.parametrize(
    ("truncate", "then"),
    [
        ("keep", "are cut. Answers lost whole: 13; in part: 1, of these without their end: 1."),
        ("drop", "are left out."),
        ("error", "stop the run once they are tokenized."),
    ],
)
def test_a_plan_ahead_estimates_what_does_not_fit(project, tmp_path, monkeypatch, truncate, then):
    config, settings = project
    path = _rows(tmp_path / "long.jsonl", questions=[2, 3, 24, *[80] * 13])
    config = replace(config, data=(path,), val=(), seq=20, truncate=truncate)
    warnings = make_plan(config, settings, ahead=True).warnings
    said = "--data: by their bytes, before tokenizing, about 14 of the 16 documents are longer than --seq 20 and"
    assert f"{said} {then}" in warnings
    monkeypatch.setattr(findings, "SURVEYED_ROWS", 10)
    few = make_plan(config, settings, ahead=True).warnings
    assert any("about 8 of the first 10 documents are longer" in warning for warning in few)
    fits = make_plan(replace(config, seq=100), settings, ahead=True).warnings
    assert not any("before tokenizing" in warning for warning in fits)


def test_conversations_that_are_cut_by_turn_are_in_the_identity(project, tmp_path):
    """A run that was begun when they were cut where --seq ends is not resumed on other tokens unsaid."""
    config, settings = project
    config = replace(config, val=(), truncate="keep")
    tokenize_sets(config, settings)
    made = training_set(config)
    folder = Path(made.stats.folder)
    one_turn = make_plan(replace(config, seq=8), settings)
    assert one_turn.train.cut_by_turn == 0
    assert not any("turn" in name for name in one_turn.identity_fields())
    manifest = open_tokenized(folder).manifest
    shutil.rmtree(folder)
    assert manifest.stop_id is not None
    data = write_conversations(folder, documents=30, stop_id=manifest.stop_id, vocab_size=manifest.vocab_size)
    plan = make_plan(replace(config, seq=24), settings)
    read = cut_lengths(data.outlines, 24)
    expected = int((read < np.minimum(data.lengths, 25)).sum())
    assert plan.train.cut_by_turn == expected > 3
    assert plan.identity_fields()["conversations cut behind a whole turn"] == expected
    before = replace(plan, train=replace(plan.train, cut_by_turn=0))
    assert difference(before, plan) == [f"conversations cut behind a whole turn: was None, now {expected}"]
    assert RunPlan.from_json(json.loads(plan.to_json())) == plan
    assert plan.train.texts == 6
    assert plan.train.text_pieces == plan.train.documents - 30 + 6 > 6
    [row] = [row for row in plan_rows(plan, None, 10**12) if row.label == "training set"]
    assert f"6 texts are read in {plan.train.text_pieces} pieces" in row.note
    assert "medsft.toml says 40 documents for words, the set has 30." in plan.warnings
    original = make_plan(replace(config, seq=24, compat="megatron-llm"), settings)
    assert original.train.cut_by_turn == 0
    last = make_plan(replace(config, seq=24, turns="last"), settings)
    assert last.train.labels == plan.train.labels
    assert last.train.supervised_tokens < plan.train.supervised_tokens


def test_an_estimate_of_texts_has_their_pieces(project, tmp_path):
    config, settings = project
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"eos_token": "w79"}')
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(["w1"] * words)}) + "\n" for words in (5, 200, 40, 90)))
    config = replace(config, data=(path,), val=(), seq=32)
    ahead = make_plan(config, settings, ahead=True)
    assert (ahead.train.texts, ahead.train.text_pieces, ahead.train.longest) == (4, ahead.train.documents, 33)
    assert not any("longer than --seq" in warning for warning in ahead.warnings)
    tokenize_sets(config, settings)
    plan = make_plan(config, settings)
    lengths = open_tokenized(Path(plan.train.folder)).lengths
    assert plan.train.text_pieces == plan.train.documents == (-(-(lengths - 1) // 32)).sum() > 10
    assert plan.train.labels == plan.train.supervised_tokens == (lengths - 1).sum()
    assert plan.train.longest == 33


def test_how_rows_are_read_is_no_part_of_a_run_but_by_its_set(project):
    config, settings = project
    tokenize_sets(config, settings)
    plan = make_plan(config, settings)
    by_hand = make_plan(replace(config, format="qa", reasoning_key=None), settings)
    assert by_hand.identity == plan.identity
    assert not {"--format", "--messages_key", "--role_map", "--first_option"} & plan.identity_fields().keys()
    with pytest.raises(DataError, match="was made of other files or keys than these"):
        make_plan(replace(config, format="alpaca", question_key="prompt", answer_key="gold"), settings, ahead=True)
