"""`medsft check` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bench.planted import IDENTIFIERS, REFUSALS, made_rows, plant
from medsft.cli.app import app


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, ["check", *map(str, arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return plant(list(made_rows(100)), each=4).write(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.jsonl"
    path.write_text("".join(json.dumps({"q": row["prompt"], "a": row["gold"]}) + "\n" for row in made_rows(40, seed=9)))
    return path


def test_output_names_places_and_never_text(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    rows, val, benchmark = files
    arguments = [rows, "--val", val, "--against", benchmark]
    plain = invoke(*arguments, "--write_clean", tmp_path / "clean")
    assert plain.exit_code == 0
    assert "rows that repeat an earlier row" in plain.stdout
    assert f"{rows}:" in plain.stdout
    assert f"(like {val}:" in plain.stdout
    record = json.loads(invoke(*arguments, "--json", "--write_clean", tmp_path / "again").stdout)
    assert record["found"]["in_against"]["rows"] == 4
    assert record["clean"]["left_out"] == len((tmp_path / "clean" / "left_out.jsonl").read_text().splitlines())
    strict = invoke(*arguments, "--strict")
    assert strict.exit_code == 3
    said = plain.output + json.dumps(record, ensure_ascii=False) + strict.output
    for text in (*REFUSALS, *(text for texts in IDENTIFIERS.values() for text in texts), "zinc", "Quillfeather"):
        assert text not in said


def test_strict_is_about_errors_alone(good: Path) -> None:
    keys = ("--question_key", "q", "--answer_key", "a")
    assert invoke(good, *keys, "--strict").exit_code == 0
    with good.open("a") as file:
        file.write(json.dumps({"q": "Seen on 14 March 2019, what now?", "a": "Rest.\nThe answer is: yes"}) + "\n")
    remarks = invoke(good, *keys, "--strict")
    assert remarks.exit_code == 0
    assert "a date more exact than a year" in remarks.stdout
    with good.open("a") as file:
        file.write(json.dumps({"q": "Call 617-555-0143 now?", "a": "Rest.\nThe answer is: yes"}) + "\n")
    assert invoke(good, *keys, "--strict").exit_code == 3
    assert invoke(good, *keys).exit_code == 0


def test_flags_and_file_of_a_run(good: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'data = ["{good}"]\nquestion_key = "q"\nanswer_key = "a"\n')
    assert json.loads(invoke("--config", tmp_path / "run.toml", "--json").stdout)["rows"] == 40
    assert json.loads(invoke("--data", good, "--question-key", "q", "--answer_key", "a", "--json").stdout)["rows"] == 40
    shares = ("--data", f"{good}:0.3", "--val", "0.1")  # of an epoch, and of the rows: all of them are looked at
    assert json.loads(invoke(*shares, "--question-key", "q", "--answer_key", "a", "--json").stdout)["rows"] == 40


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "no rows are named"),
        (["{good}", "--val", "{good}"], 2, "is among the rows that are looked at"),
        (["{good}", "--without_identifiers"], 2, "nothing is written"),
        (["{good}", "--write_clean", "{here}"], 2, "exists already"),
        (["{here}/none.jsonl"], 3, "cannot be read"),
        (["{good}", "--ngram", "1"], 2, "--ngram"),
    ],
)
def test_what_cannot_be_done_is_said(good: Path, arguments: list[str], code: int, said: str) -> None:
    result = invoke(*(argument.format(good=good, here=good.parent) for argument in arguments))
    assert result.exit_code == code
    assert said in result.output


def test_rows_of_another_format_in_another_kind_of_file(tmp_path: Path) -> None:
    """Chat rows of two turns in a JSON array of several lines, whose rows have numbers of their own."""

    def chat(question: str, answer: str) -> dict[str, object]:
        turns = [("user", "Hello."), ("assistant", "Hello, what is it?"), ("user", question), ("assistant", answer)]
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    rows = [
        chat("Why?", "So."),
        chat("Why?", "So."),
        chat("Call 617-555-0143?", "I cannot provide advice."),
        chat("Who?", "She."),
    ]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(rows, indent=1))
    result = invoke(path, "--json", "--write_clean", tmp_path / "clean")
    record = json.loads(result.stdout)
    assert {name: found["rows"] for name, found in record["found"].items() if found["rows"]} == {
        "repeated": 1,
        "refusing": 1,
        "identifier_phone": 1,
    }
    assert record["not_checked"] == []
    assert [json.loads(line) for line in (tmp_path / "clean" / "chat.jsonl").open()] == [rows[0], *rows[2:]]


def test_how_rows_are_read_is_said_and_files_without_rows_are_refused(good: Path, tmp_path: Path) -> None:
    said = invoke(good, "--question_key", "q", "--answer_key", "a")
    assert "Rows are read as qa: question `q`, answer `a`" in said.stderr
    for name, content in {"empty.jsonl": "", "empty.json": "[]", "blank.jsonl": "\n\n"}.items():
        (tmp_path / name).write_text(content)
        result = invoke(tmp_path / name)
        assert result.exit_code == 3
        assert "holds no row that can be used" in result.output


def test_what_stands_under_other_keys_is_written_as_it_was(tmp_path: Path) -> None:
    """Half of a surrogate pair under a key that is not read."""
    path = tmp_path / "rows.jsonl"
    lines = ('{"prompt": "Why?", "gold": "So.", "note": "\\ud83d"}', '{"prompt": "Who?", "gold": "She.", "note": "é"}', "")
    path.write_text("\n".join(lines))
    assert invoke(path, "--write_clean", tmp_path / "clean").exit_code == 0
    assert (tmp_path / "clean" / "rows.jsonl").read_text() == path.read_text()


def test_lengths_of_a_second_kind_of_rows_are_not_unusual(tmp_path: Path) -> None:
    short = [{"prompt": f"Is it {number}?", "gold": "Yes, it is."} for number in range(60)]
    for many, unusual in ((2, 2), (40, 0)):
        path = tmp_path / f"{many}.jsonl"
        rows = [*short, *({"prompt": f"Why {number}?", "gold": "For many reasons. " * 60} for number in range(many))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert json.loads(invoke(path, "--json").stdout)["found"]["length"]["rows"] == unusual


def test_what_is_usual_is_told_by_the_rows_of_one_file(tmp_path: Path) -> None:
    verdicts = [
        f"It was study {number} that showed it beyond doubt, as we think. " * 9 + "The answer is: no" for number in range(400)
    ]
    spoken = [f"Drink water for {number} days, and rest." for number in range(30)]
    german = [f"Trinken Sie {number} Tage lang viel Wasser, und ruhen Sie sich aus." for number in range(15)]
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("verdicts", "spoken", "german")}
    for path, answers in zip(paths.values(), (verdicts, spoken, german), strict=True):
        rows = [{"prompt": f"What about {path.stem} {number}?", "gold": answer} for number, answer in enumerate(answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(invoke(*paths.values(), "--json").stdout)["found"]
    assert {name: found[name]["rows"] for name in ("cut_off", "length", "language")} == dict.fromkeys(
        ("cut_off", "length", "language"), 0
    )
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(path.read_text() for path in paths.values()))
    found = json.loads(invoke(whole, "--json").stdout)["found"]
    assert found["cut_off"]["rows"] == len(spoken) + len(german)
    assert found["language"]["rows"] == len(german)


def test_a_message_that_is_empty_is_an_empty_row(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " "}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    found = json.loads(invoke(path, "--json").stdout)["found"]
    assert (found["empty"]["rows"], found["unusable"]["rows"]) == (1, 0)


def test_strict_needs_its_libraries(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsft.core.data.check.libraries.find_spec", lambda name: None)
    lenient = invoke(good, "--question_key", "q", "--answer_key", "a")
    assert lenient.exit_code == 0
    assert "warning: Near repeats and languages were not looked for: pip install 'medsft[check]'" in lenient.stderr
    strict = invoke(good, "--question_key", "q", "--answer_key", "a", "--strict")
    assert strict.exit_code == 2
    assert "pip install 'medsft[check]'" in strict.stderr


def test_a_file_that_is_given_twice_is_named(good: Path) -> None:
    keys = ("--question_key", "q", "--answer_key", "a")
    assert f"warning: FILE: {good} is given twice." in invoke(good, good, *keys).stderr
    assert "given twice" not in invoke(good, *keys).stderr


def test_options_that_cannot_be_read_are_refused(good: Path) -> None:
    for options, said in (
        (("--role_map", "doctor"), "is not NAME=ROLE"),
        (("--format", "text", "--system_key", "s"), "no meaning"),
    ):
        refused = invoke(good, *options)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_rows_under_other_names_are_said_to_have_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Fall;Befund\nWas?;Das.\n")
    result = invoke(path)
    assert "1 row: no key 'prompt'" in result.stdout
    assert (
        "The keys of the first of them: `Fall`, `Befund`. Choose --format, or the keys of these rows (--question_key KEY"
        in result.stdout
    )
