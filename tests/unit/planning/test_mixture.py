"""Shares: of files in an epoch (`--data FILE:SHARE`), and of the documents to validate on (`--val SHARE`, `--group_key`)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.data.dataset.dataset import groups_path, hashes_path, open_tokenized
from medsft.core.data.dataset.manifest import MANIFEST_NAME
from medsft.core.planning import planner
from medsft.core.planning.mixture import documents_taken
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan, preview
from medsft.core.planning.selection import open_splits, select
from medsft.core.planning.sets import training_folder
from medsft.core.settings import Settings
from medsft.core.workflow import tokenize_sets
from medsft.errors import ConfigError, DataError, MismatchError

Made = tuple[RunConfig, Settings]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A base model without weights, and three files of 40, 25 and 7 different rows."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    for number, (name, rows) in enumerate((("a", 40), ("b", 25), ("c", 7))):
        write_rows(tmp_path / f"{name}.jsonl", range(100 * number, 100 * number + rows))
    config, settings = tiny.plannable(tmp_path, global_batch=8, val=[])
    return replace(config, data=tuple(tmp_path / f"{name}.jsonl" for name in "abc")), settings


def write_rows(path: Path, numbers: Iterable[int]) -> Path:
    """Different rows of different lengths; that of a number is always the same."""
    with path.open("w") as file:
        for number in numbers:
            words = random.Random(number).choices(tiny.WORDS, k=2 + number % 9)
            row = {"prompt": " ".join(words), "gold": f"w{number % 80} w{number // 80}", "patient": f"P-{number % 6}"}
            file.write(json.dumps(row) + "\n")
    return path


def with_shares(config: RunConfig, *shares: str) -> RunConfig:
    files = [f"{path}{share}" for path, share in zip(config.data, shares, strict=True)]
    return from_mapping({"data": files}, base=config)


def planned(config: RunConfig, settings: Settings, **changes: object) -> RunPlan:
    config = from_mapping(changes, base=config)
    tokenize_sets(config, settings)
    return make_plan(config, settings)


@pytest.mark.parametrize(
    ("share", "documents", "taken"),
    [(0.01, 1, 1), (2.5, 1, 2), (0.01, 40, 1), (0.3, 40, 12), (2.5, 3, 8), (1.0, 7, 7), (0.35, 10, 4), (1e-9, 5, 1)],
)
def test_a_share_of_a_file(share, documents, taken):
    assert documents_taken(share, documents) == taken


def test_an_epoch_is_the_share_of_each_file(project):
    config, settings = project
    config = with_shares(config, ":0.3", "", ":2.5")
    assert config.data_files == project[0].data
    ahead = make_plan(config, settings, ahead=True)
    plan = planned(config, settings, epochs=4)
    for found in (ahead, plan):
        assert [(part.file, part.share, part.available, part.documents) for part in found.train.mixture] == [
            ("a.jsonl", 0.3, 40, 12),
            ("b.jsonl", 1.0, 25, 25),
            ("c.jsonl", 2.5, 7, 18),
        ]
        assert found.train.documents == 55
    assert (plan.num_iterations, plan.epochs) == (28, round(28 * 8 / 55, 4))
    assert plan.epoch_ends == {7, 14, 21, 28}
    train, val = open_splits(plan)
    assert val is None
    seen = np.concatenate([train.subset.indices[train.order.batch(k)] for k in range(plan.num_iterations)])
    for epoch in range(4):
        here = seen[epoch * 55 : (epoch + 1) * 55]
        assert [((here >= low) & (here < high)).sum() for low, high in ((0, 40), (40, 65), (65, 72))] == [12, 25, 18]
    lengths = train.subset.lengths
    assert plan.train.tokens == round(0.3 * lengths[:40].sum()) + lengths[40:65].sum() + round(18 / 7 * lengths[65:].sum())
    assert plan.train.tokens == sum(part.tokens for part in plan.train.mixture)
    assert plan.train.labels == sum(part.labels for part in plan.train.mixture)
    assert plan.train.supervised_tokens == sum(part.supervised_tokens for part in plan.train.mixture)
    assert RunPlan.from_json(json.loads(plan.to_json())) == plan


def test_shares_make_another_run_and_the_set_is_the_same(project):
    config, settings = project
    plain = planned(config, settings)
    mixed = make_plan(with_shares(config, ":0.3", "", ""), settings)
    assert mixed.train.fingerprint == plain.train.fingerprint
    assert mixed.identity != plain.identity
    assert "shares of the files of --data: was None, now [0.3, 1.0, 1.0]" in difference(plain, mixed)
    ones = make_plan(with_shares(config, ":1", ":1.0", ""), settings)
    assert (ones.identity, ones.train.mixture) == (plain.identity, ())
    assert not {"shares of the files of --data", "share in --val"} & plain.identity_fields().keys()


def test_what_a_plan_says_decides_and_not_what_lies_on_the_disk(project, tmp_path):
    """A file that is named as a share was written later on changes nothing in a run that is there."""
    config, settings = project
    plan = planned(with_shares(config, ":0.5", "", ""), settings)
    before = open_splits(plan)[0]
    write_rows(tmp_path / "a.jsonl:0.5", range(3))
    assert open_splits(plan)[0].order == before.order
    assert plan.train.shares == (0.5, 1, 1)


def test_a_path_that_exists_is_a_file(project, tmp_path):
    config, settings = project
    odd = write_rows(tmp_path / "day:2", range(500, 510))
    plan = planned(config, settings, data=[odd])
    assert (plan.train.documents, plan.train.mixture) == (10, ())
    plan = planned(config, settings, data=[f"{odd}:0.5"], run_name="half")
    assert [(part.file, part.documents) for part in plan.train.mixture] == [("day:2", 5)]


def test_sets_without_counts_are_tokenized_again(project):
    config, settings = project
    planned(config, settings)
    path = training_folder(config) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    assert manifest.pop("input_documents") == [40, 25, 7]
    path.write_text(json.dumps(manifest))
    make_plan(config, settings)
    mixed = with_shares(config, ":0.3", "", "")
    with pytest.raises(DataError, match="does not say how many documents each file gave") as caught:
        make_plan(mixed, settings)
    assert "--retokenize" in caught.value.hint
    plan = planned(mixed, settings, retokenize=True)
    assert plan.train.documents == 44


def test_bad_and_long_rows_are_no_documents_of_a_file(project, tmp_path):
    config, settings = project
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{}\n")
        file.write(json.dumps({"prompt": "w1 " * 60, "gold": "w2"}) + "\n")
    changes = {"bad_rows": "skip", "truncate": "drop", "seq": 40}
    plan = planned(with_shares(config, ":0.5", "", ""), settings, **changes)
    assert [(part.available, part.documents) for part in plan.train.mixture] == [(40, 20), (25, 25), (7, 7)]
    write_rows(tmp_path / "c.jsonl", []).write_text(json.dumps({"prompt": "w1 " * 60, "gold": "w2"}) + "\n")
    with pytest.raises(DataError, match=r"no document of .*c.jsonl is used, so a share of 2 cannot be taken"):
        planned(with_shares(config, "", "", ":2"), settings, retokenize=True, **changes)


@pytest.mark.parametrize(
    ("values", "flag", "words"),
    [
        ({"data": ["a.jsonl:0"]}, "--data", "a share must be above 0"),
        ({"data": ["a.jsonl:-1"]}, "--data", "a share must be above 0"),
        ({"data": ["a.jsonl:1e999"]}, "--data", "1000 at most"),
        ({"val": 1.5}, "--val", "1.5 is no share between 0 and 1"),
        ({"val": "0"}, "--val", "0 is no share between 0 and 1"),
        ({"val": ["0.1", "val.jsonl"]}, "--val", "`0.1` is a share of --data and stands alone"),
        ({"group_key": "patient"}, "--group_key", "only with a share in --val"),
        ({"group_key": "patient", "val": ["val.jsonl"]}, "--group_key", "only with a share in --val"),
        ({"data": ["a.jsonl:2"], "compat": "megatron-llm"}, "--data", "not possible with --compat megatron-llm"),
        ({"val": "0.1", "compat": "megatron-llm"}, "--val", "not possible with --compat megatron-llm"),
    ],
)
def test_wrong_shares_are_named(project, values, flag, words):
    config, settings = project
    with pytest.raises(ConfigError) as caught:
        make_plan(from_mapping(values, base=config), settings)
    assert any(problem.where == flag and words in problem.message for problem in caught.value.problems)


def texts_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def held_out(config: RunConfig, settings: Settings) -> set[int]:
    """The rows that a run validates on, by the numbers that `write_rows` gave them. Checks that no other run is disjoint."""
    train, val = open_splits(planned(config, settings))
    assert val is not None
    rows = [line for path in config.data_files for line in texts_of(path)]
    validated = {rows[document] for document in val.subset.indices}
    assert not validated & {rows[document] for document in train.subset.indices}
    assert len(train.subset) + len(val.subset) == len(rows)
    return {hash(row) for row in validated}


def test_other_rows_move_none_to_the_other_side(project, tmp_path):
    config, settings = project
    config = from_mapping({"val": 0.2}, base=config)
    before = held_out(config, settings)
    assert 3 < len(before) < 30
    for name, numbers in (("fewer", range(0, 40, 2)), ("more", range(60)), ("turned", reversed(range(40)))):
        other = write_rows(tmp_path / f"{name}.jsonl", numbers)
        data = (config.data[2], other, other, config.data[1])  # other rows, other files, and all of them twice
        rows = {hash(row) for path in data for row in texts_of(path)}
        known = {hash(row) for path in config.data for row in texts_of(path)}
        found = held_out(replace(config, data=data, run_name=name), settings)
        assert found & known == before & rows, name
        assert held_out(replace(config, data=data, run_name=name, seed=7), settings) == found


def test_the_plan_of_a_share_to_validate_on(project):
    config, settings = project
    plain = planned(config, settings)
    asked = from_mapping({"val": "0.2"}, base=config)
    ahead = make_plan(replace(asked, run_name="ahead"), settings, ahead=True)
    plan = make_plan(asked, settings)
    assert plan.val is not None
    assert ahead.val is not None
    assert plan.val.folder == plan.train.folder
    assert plan.train.documents + plan.val.documents == 72
    assert (ahead.train.documents, ahead.val.documents) == (plan.train.documents, plan.val.documents)
    assert plan.num_iterations == -(-3 * plan.train.documents // 8)
    assert "share in --val: was None, now 0.2" in difference(plain, plan)
    assert not any("rows are in --data too" in warning for warning in plan.warnings)
    assert not any("medsft.toml says" in warning for warning in planned(asked, settings, run_name="x").warnings)
    shown = preview(asked, settings)
    assert shown.problems == ()
    assert shown.plan == plan


def test_shares_of_files_are_of_what_is_not_withheld(project):
    config, settings = project
    plan = planned(with_shares(config, ":0.5", ":2", ""), settings, val=0.2)
    train, val = open_splits(plan)
    assert val is not None
    left = [int(((train.subset.indices >= low) & (train.subset.indices < high)).sum()) for low, high in ((0, 40), (40, 65))]
    assert [part.available for part in plan.train.mixture][:2] == left
    assert sum(part.available for part in plan.train.mixture) + len(val.subset) == 72
    assert [part.documents for part in plan.train.mixture][:2] == [documents_taken(0.5, left[0]), 2 * left[1]]
    used = np.concatenate([train.order.batch(k) for k in range(plan.num_iterations)])
    assert not set(train.subset.indices[used]) & set(val.subset.indices)


def test_groups_stay_together(project, tmp_path):
    config, settings = project
    config = from_mapping({"val": 0.4, "group_key": "patient"}, base=config)
    plan = planned(config, settings)
    train, val = open_splits(plan)
    assert val is not None
    patients = [json.loads(line)["patient"] for path in config.data for line in texts_of(path)]
    sides = [{patients[document] for document in part.subset.indices} for part in (train, val)]
    assert sides[0] | sides[1] == {f"P-{number}" for number in range(6)}
    assert not sides[0] & sides[1]
    assert "--group_key" in plan.identity_fields()
    folder = training_folder(config)
    assert all(b"P-3" not in path.read_bytes() for path in folder.iterdir())
    assert not any("patient" in remark for remark in plan.warnings)
    nested = write_rows(tmp_path / "nested.jsonl", range(40))
    rows = [json.loads(line) for line in texts_of(nested)]
    for number, row in enumerate(rows):  # the same patients below another key, one of them as numbers
        row["of"] = {"patient": row.pop("patient") if number % 6 else [7, "7", " 7 ", 7.0][number // 6 % 4]}
    nested.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = replace(config, data=(nested,), group_key="of.patient", run_name="nested")
    groups = open_tokenized(training_folder(replace(other, run_name=tokenized(other, settings)))).group_hashes
    assert groups is not None
    assert len(set(groups.tolist())) == 6
    again = open_splits(planned(other, settings))[1]
    assert again is not None
    found = {str(rows[document]["of"]["patient"]).strip() for document in again.subset.indices}
    assert {patient for patient in found if patient.startswith("P")} == sides[1] - {"P-0"}


def tokenized(config: RunConfig, settings: Settings) -> str:
    tokenize_sets(config, settings)
    return config.run_name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "nothing under 'patient', the key of --group_key"),
        ({"patient": None}, "'patient' is neither text nor a number"),
        ({"patient": ["Smith"]}, "'patient' is neither text nor a number"),
        ({"patient": True}, "'patient' is neither text nor a number"),
        ({"patient": " "}, "empty value under 'patient'"),
    ],
)
def test_a_row_without_its_group_is_a_bad_row(project, tmp_path, value, reason):
    config, settings = project
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "w1", "gold": "w2", **value}) + "\n")
    config = from_mapping({"val": 0.4, "group_key": "patient"}, base=config)
    for ask in (tokenize_sets, lambda *made: make_plan(*made, ahead=True)):
        with pytest.raises(DataError, match=reason) as caught:
            ask(config, settings)
        assert "a.jsonl:41" in caught.value.message
        assert "Smith" not in str(caught.value)
    plan = planned(config, settings, bad_rows="skip")
    assert plan.val is not None
    assert plan.train.documents + plan.val.documents == 72


def test_a_set_without_hashes_or_of_other_groups_is_tokenized_again(project):
    config, settings = project
    asked = from_mapping({"val": 0.4}, base=config)
    planned(config, settings)
    groups = replace(asked, group_key="patient")
    with pytest.raises(DataError, match="--group_key was not given, now patient"):
        tokenize_sets(groups, settings)
    with pytest.raises(DataError, match="was made without the groups of `patient`"):
        make_plan(replace(groups, data=()), settings)
    hashes_path(training_folder(config)).unlink()
    with pytest.raises(DataError, match=r"--val: .* has no hashes of its rows") as caught:
        planned(asked, settings)
    assert "--retokenize" in caught.value.hint
    planned(groups, settings, retokenize=True)
    assert groups_path(training_folder(config)).is_file()
    with pytest.raises(DataError, match="--group_key was patient, now not given"):
        tokenize_sets(asked, settings)


@pytest.mark.parametrize(("share", "words"), [(1e-6, "none"), (0.999999, "all")])
def test_both_sides_have_documents(project, share, words):
    config, settings = project
    config = from_mapping({"val": share}, base=config)
    for ahead in (True, False):
        with pytest.raises(DataError, match=f"--val: a share of {share:g} takes {words} of the 72 documents to validate on"):
            make_plan(config, settings, ahead=ahead) if ahead else planned(config, settings)
    assert len(preview(config, settings).problems) == 1
    one = from_mapping({"val": share, "group_key": "patient"}, base=config)
    with pytest.raises(DataError, match=f"takes {words} of the 72 documents in 6 groups of --group_key to validate"):
        planned(one, settings, retokenize=True)


def test_other_hashes_beside_the_set_are_noticed(project):
    config, settings = project
    plan = planned(config, settings, val=0.2)
    open_splits(plan)
    path = hashes_path(training_folder(config))
    np.save(path, np.load(path) // np.uint64(3))
    with pytest.raises(MismatchError, match="the hashes of its rows have changed since the run was planned"):
        open_splits(plan)
    assert make_plan(plan.config, settings).identity != plan.identity


def test_a_set_to_validate_on_that_is_there_is_not_used_with_a_share(project, tmp_path):
    config, settings = project
    val = write_rows(tmp_path / "val.jsonl", range(900, 905))
    assert planned(config, settings, val=[val]).val.documents == 5
    plan = planned(config, settings, val=0.2)
    assert plan.val is not None
    assert plan.val.folder == plan.train.folder
    train, _ = select(plan.config, open_tokenized(training_folder(config)), None, shares=())
    assert len(train.subset) == plan.train.documents


def test_a_run_with_other_shares_is_not_gone_on_with(project):
    from medsft.core.run.rundir import RunDir
    from medsft.core.workflow import check_against_existing

    config, settings = project
    mixed = planned(with_shares(config, ":0.3", "", ""), settings, val=0.2)
    RunDir(Path(mixed.run_dir)).create(mixed.to_json())
    check_against_existing(make_plan(mixed.config, settings))
    for changes in ({"data": config.data}, {"val": (Path("0.3"),)}):
        with pytest.raises(MismatchError, match="holds a run with another plan"):
            check_against_existing(make_plan(replace(mixed.config, **changes), settings))
