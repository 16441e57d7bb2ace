"""Twenty planted faults of each kind: what a check finds of them, and what it reports wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.planted import IDENTIFIERS, REFUSALS, Planted, made_rows, plant
from medsft.core.data.check import check, kinds
from medsft.core.data.check.check import CheckRequest, check_rows
from medsft.core.data.check.clean import LEFT_OUT_NAME, write_clean
from medsft.core.data.check.report import CheckReport
from medsft.core.data.dataset import pool
from medsft.core.data.sources import jsonl
from medsft.core.data.sources.row_format import RowFormat
from medsft.errors import ConfigError, DataError

EACH = 20


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(list(made_rows(600)), each=EACH)


@pytest.fixture(scope="module")
def request_(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> CheckRequest:
    rows, val, benchmark = planted.write(tmp_path_factory.mktemp("rows"))
    return CheckRequest(files=(rows,), rows=RowFormat(), val=(val,), against=(benchmark,))


@pytest.fixture(scope="module")
def report(request_: CheckRequest) -> CheckReport:
    return check_rows(request_, workers=1)


def lines_of(report: CheckReport, kind: kinds.Kind) -> set[int]:
    found = report.found.get(kind)
    return {int(report.places.of(row).rsplit(":", 1)[1]) for row in found.rows.tolist()} if found else set()


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.name)
def test_planted_faults_are_found_and_little_else(report: CheckReport, planted: Planted, kind: kinds.Kind) -> None:
    wanted, found = planted.faults[kind.name], lines_of(report, kind)
    assert len(wanted) >= EACH
    assert len(wanted & found) >= 0.9 * len(wanted)
    assert len(found - wanted - planted.side_effects.get(kind.name, set())) <= 1


def test_rows_without_planted_faults_have_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made_rows(300, seed=5)))
    assert check_rows(CheckRequest(files=(path,), rows=RowFormat())).sentences() == []


def test_what_a_row_is_like_is_named(report: CheckReport, planted: Planted) -> None:
    for kind, file in ((kinds.REPEATED, "rows.jsonl"), (kinds.IN_VAL, "val.jsonl"), (kinds.IN_AGAINST, "benchmark.jsonl")):
        for row, like in report.found[kind].places(report.places, 100):
            path, _, line = like.rpartition(":")
            assert Path(path).name == file
            if kind is kinds.REPEATED:
                assert planted.lines[int(row.rsplit(":", 1)[1]) - 1] == planted.lines[int(line) - 1]
                assert row != like


def test_several_processes_and_small_blocks_find_the_same(
    request_: CheckRequest, report: CheckReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(jsonl, "_BLOCK_BYTES", 100_000)
    assert check_rows(request_, workers=2).to_json() == report.to_json()


def test_memory_is_bounded_by_design(report: CheckReport, request_: CheckRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each row some numbers stay, whatever its length; keys of near repeats go to files that have no name."""
    seen: list[Any] = []
    judge = check.judge
    monkeypatch.setattr(check, "judge", lambda columns, *rest, **told: seen.append(columns) or judge(columns, *rest, **told))
    check_rows(request_, workers=1)
    [columns] = seen
    arrays = [getattr(columns, name) for name in ("flags", "exact", "question", "answer", "ending", "lengths", "language")]
    assert sum(array.nbytes for array in [*arrays, *columns.places.numbers]) / report.rows <= 60
    assert all(len(array) == report.rows for array in arrays)


def test_clean_files_are_the_input_without_faults(report: CheckReport, planted: Planted, tmp_path: Path) -> None:
    clean = write_clean(report, tmp_path / "clean")
    near = planted.faults["near_repeated"] | planted.side_effects["near_repeated"]
    faulty = set().union(*(planted.faults[kind.name] for kind in kinds.LEFT_OUT if kind is not kinds.NEAR_REPEATED))
    named = {int(json.loads(line)["row"].rsplit(":", 1)[1]) for line in (tmp_path / "clean" / LEFT_OUT_NAME).open()}
    kept = [json.loads(line) for number, line in enumerate(planted.lines, 1) if number not in named]
    assert [json.loads(line) for line in (tmp_path / "clean" / "rows.jsonl").open()] == kept
    assert clean.files == {"rows.jsonl": len(kept)}
    assert clean.left_out == len(planted.lines) - len(kept)
    assert faulty <= named
    assert named <= faulty | near
    with pytest.raises(ConfigError, match="exists already"):
        write_clean(report, tmp_path / "clean")


def test_clean_files_have_identifiers_unless_told_otherwise(report: CheckReport, planted: Planted, tmp_path: Path) -> None:
    faults = planted.faults
    with_them = {json.loads(line)["row"] for line in _left_out(write_clean(report, tmp_path / "with").folder)}
    without = {
        int(json.loads(line)["row"].rsplit(":", 1)[1])
        for line in _left_out(write_clean(report, tmp_path / "without", with_identifiers=False).folder)
    }
    assert len(with_them) < len(without)
    assert all(faults[f"identifier_{name}"] <= without for name in kinds.IDENTIFIERS)


def _left_out(folder: Path) -> list[str]:
    return (folder / LEFT_OUT_NAME).read_text().splitlines()


def test_a_file_that_changes_meanwhile_is_not_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "gold": "b"}\n' * 3)
    report = check_rows(CheckRequest(files=(path,), rows=RowFormat()))
    path.write_text('{"prompt": "a", "gold": "b"}\n' * 4)
    with pytest.raises(DataError, match="changed while it was read"):
        write_clean(report, tmp_path / "clean")
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_report_is_json_of_one_shape(report: CheckReport) -> None:
    record = json.loads(json.dumps(report.to_json()))
    assert set(record) == {
        *("rows", "rows_with_errors", "found", "unusable_reasons", "unusable_advice"),
        *("languages", "compared_with", "not_checked"),
    }
    assert set(record["found"]) == {kind.name for kind in kinds.KINDS}
    for name, found in record["found"].items():
        assert set(found) == {"rows", "error", "means", "places"}
        assert found["rows"] == len(found["places"])
        assert all(set(place) <= {"row", "like"} for place in found["places"]), name
    assert record["compared_with"] == {"--val": EACH, "--against": EACH}


def test_no_text_of_a_row_leaves_the_check(report: CheckReport, tmp_path: Path) -> None:
    clean = write_clean(report, tmp_path / "clean")
    said = "\n".join([json.dumps(report.to_json(), ensure_ascii=False), *report.sentences(), json.dumps(clean.to_json())])
    said += (clean.folder / LEFT_OUT_NAME).read_text()
    for text in (*REFUSALS, *(text for texts in IDENTIFIERS.values() for text in texts), "Quillfeather", "4829137", "zinc"):
        assert text not in said


def test_without_its_libraries_the_rest_is_checked(
    request_: CheckRequest, report: CheckReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.libraries, "find_spec", lambda name: None)
    other = check_rows(request_, workers=1)
    assert other.not_checked == ["Near repeats and languages were not looked for: pip install 'medsft[check]'"]
    assert set(report.found) - set(other.found) == {kinds.NEAR_REPEATED, kinds.LANGUAGE}


def test_a_quick_look_sees_what_shows_in_a_row_alone(request_: CheckRequest, report: CheckReport) -> None:
    quick = check.quick_check(request_, seconds=60)
    assert quick.rows == report.rows
    for kind in (kinds.REFUSING, kinds.UNUSABLE, kinds.IDENTIFIERS["mail"]):
        assert lines_of(quick, kind) == lines_of(report, kind)
    assert check.quick_check(request_, seconds=-1).rows == 0
