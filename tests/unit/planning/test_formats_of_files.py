"""Files of several row formats in one run: questions with answers, general chat, plain text."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from medsft.core.config.run_config import RunConfig, from_mapping
from medsft.core.data.check.check import check_rows
from medsft.core.data.check.report import CheckReport
from medsft.core.data.dataset.dataset import open_tokenized
from medsft.core.data.tokenizers.template import Role
from medsft.core.planning import planner
from medsft.core.planning.plan import RunPlan, difference
from medsft.core.planning.planner import make_plan
from medsft.core.planning.sets import rows_sentences, training_folder
from medsft.core.settings import Settings
from medsft.core.workflow import check_request, faults_in_rows, tokenize_sets
from medsft.errors import DataError
from medsft.tui.wizard import backend

Made = tuple[RunConfig, Settings]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A base model without weights; 20 questions, 10 chats, 6 texts, and 5 chats to validate on."""
    monkeypatch.setattr(planner, "find_devices", lambda: tiny.LAPTOP)
    config, settings = tiny.plannable(tmp_path, global_batch=4)
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"eos_token": "w79"}')
    questions = [{"prompt": f"w1 w{n}", "gold": f"w{n} w2", "patient": n % 4} for n in range(20)]
    chats = [{"messages": [_said("user", n), _said("assistant", n + 1)], "patient": n % 3} for n in range(15)]
    texts = [{"text": f"w7 w{n} " * 9, "patient": n} for n in range(6)]
    for name, rows in (("qa", questions), ("chat", chats[:10]), ("text", texts), ("val", chats[10:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tuple(tmp_path / f"{name}.jsonl" for name in ("qa", "chat", "text"))
    return replace(config, data=data, val=(tmp_path / "val.jsonl",), run_name="mixed"), settings


def _said(role: str, number: int) -> dict[str, str]:
    return {"role": role, "content": f"w3 w{number}"}


def planned(config: RunConfig, settings: Settings) -> RunPlan:
    tokenize_sets(config, settings)
    return make_plan(config, settings)


def test_a_mixture_of_formats_is_one_run(project: Made) -> None:
    config, settings = project
    shares = [f"{path}{share}" for path, share in zip(config.data, (":0.5", "", ":2"), strict=True)]
    config = from_mapping({"data": shares, "group_key": None}, base=config)
    ahead = make_plan(config, settings, ahead=True)
    plan = planned(config, settings)
    assert [(part.documents, part.available) for part in plan.train.mixture] == [(10, 20), (10, 10), (12, 6)]
    assert [part.documents for part in ahead.train.mixture] == [10, 10, 12]
    assert ahead.train.texts == plan.train.texts == 6
    data = open_tokenized(training_folder(config))
    roles = Counter(int(max(data.roles(number))) for number in range(data.num_documents))
    assert roles == {Role.ANSWER: 30, Role.TEXT: 6}
    assert data.manifest.findings is not None
    assert data.manifest.findings.unused_text == {}
    again = planned(config, settings)
    assert again.identity == plan.identity
    assert difference(plan, again) == []
    assert len(rows_sentences(config)) == 3
    assert rows_sentences(replace(config, data=(), val=())) == tuple(
        sentence.partition(" (")[0].replace(f" and {config.val[0]}", "") + "." for sentence in rows_sentences(config)
    )


def test_a_group_holds_over_formats(project: Made) -> None:
    config, settings = project
    config = from_mapping({"val": ["0.3"], "group_key": "patient"}, base=config)
    plan = planned(config, settings)
    assert plan.val is not None
    assert plan.val.documents + plan.train.documents == 36


def test_a_set_is_stale_when_the_format_of_one_file_changes(project: Made) -> None:
    config, settings = project
    planned(config, settings)
    text = config.data[2]
    other = replace(config, format="text", data=(text,))
    with pytest.raises(DataError, match="no longer among the files"):
        tokenize_sets(other, settings)
    both = text.with_name("both.jsonl")
    both.write_text(json.dumps({"prompt": "w1", "gold": "w2", "text": "w3", "body": "w4"}) + "\n")
    config = replace(config, data=(config.data[0], both), run_name="other", val=())
    planned(replace(config, text_key="body"), settings)
    for changed, ahead in ((config, f"{both}: --format was text, now qa"), (replace(config, text_key="text"), "text")):
        with pytest.raises(DataError, match=ahead):
            tokenize_sets(changed, settings)
        with pytest.raises(DataError, match="made of other files or keys"):
            make_plan(changed, settings, ahead=True)


def test_a_set_keeps_its_keys_when_a_validation_set_is_added(project: Made) -> None:
    config, settings = project
    rows = [{"question": f"w1 w{n}", "answer": f"w{n} w2"} for n in range(4)]
    val = config.val[0].with_name("plain.jsonl")
    val.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = val.with_name("system.jsonl")
    train.write_text("".join(json.dumps(row | {"system": "w5"}) + "\n" for row in rows))
    for name, data, beside in (("a", train, val), ("b", val, train)):
        alone = replace(config, data=(data,), val=(), run_name=name)
        tokenize_sets(alone, settings)
        assert planned(replace(alone, val=(beside,)), settings).val is not None


def test_options_without_files_must_be_those_of_the_set(project: Made) -> None:
    config, settings = project
    planned(config, settings)
    without = replace(config, data=(), val=())
    tokenize_sets(without, settings)
    tokenize_sets(replace(without, messages_key="messages"), settings)
    for changes, line in (
        ({"format": "qa"}, "--format was messages, now qa"),
        ({"answer_key": "a"}, "--answer_key was gold, now a"),
    ):
        with pytest.raises(DataError, match=line):
            tokenize_sets(from_mapping(changes, base=without), settings)
        with pytest.raises(DataError, match=line):
            make_plan(from_mapping(changes, base=without), settings, ahead=True)


def test_an_option_may_be_for_one_of_the_two_sets(project: Made) -> None:
    config, settings = project
    turns = config.data[1].with_name("turns.jsonl")
    turns.write_text(config.data[1].read_text().replace("messages", "turns"))
    qa = config.data[0].with_name("qa-val.jsonl")
    qa.write_text(config.data[0].read_text().replace("prompt", "ask"))
    given = replace(config, data=(turns,), val=(qa,), messages_key="turns", question_key="ask")
    planned(given, settings)
    without = replace(given, data=(), val=())
    planned(without, settings)
    planned(replace(given, val=(), question_key="prompt"), settings)
    planned(replace(without, val=(qa,), messages_key=None), settings)
    for changes, said, hint in (
        ({"question_key": "other"}, "mixed-val were read otherwise:\n  - --question_key was ask, now other", "give --val with"),
        ({"text_key": "body"}, "mixed were read otherwise:\n  - --text_key is given, and no rows", "give --data with"),
    ):
        for act in (lambda changed: make_plan(changed, settings, ahead=True), lambda changed: tokenize_sets(changed, settings)):
            with pytest.raises(DataError, match=said) as error:
                act(from_mapping(changes, base=without))
            assert hint in str(error.value.hint)
    replaced = replace(config, data=(config.data[1],), val=(), format="messages", retokenize=True)
    assert planned(replaced, settings).val is not None


def test_a_check_reads_each_file_in_its_format(project: Made) -> None:
    config, _ = project
    chat, text = config.data[1], config.data[2]
    for path, row in (
        (chat, {"messages": [_said("user", 99), {"role": "assistant", "content": " "}]}),
        (text, {"text": " "}),
        (chat, {"messages": "w1"}),
    ):
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    with chat.open("a") as file:
        file.write(config.val[0].read_text().splitlines()[0] + "\n")
    against = text.with_name("against.jsonl")
    against.write_text(text.read_text().splitlines()[1] + "\n" + config.data[0].read_text().splitlines()[2] + "\n")
    report = check_rows(check_request(config, against=(against,)))
    assert places(report, "empty") == [f"{chat}:11", f"{text}:7"]
    assert places(report, "unusable") == [f"{chat}:12"]
    assert places(report, "in_val") == [f"{chat}:13"]
    assert set(places(report, "in_against")) == {f"{config.data[0]}:3", f"{text}:2"}
    assert "2 have an empty question or answer" in faults_in_rows(config)


def places(report: CheckReport, name: str) -> list[str]:
    return [row for kind, found in report.found.items() if kind.name == name for row, _ in found.places(report.places, 10)]


def test_the_wizard_says_each_format_and_shows_a_row_of_each(project: Made) -> None:
    config, settings = project
    samples, trouble = backend._samples(config, settings)
    assert trouble == ""
    assert [sample.parts[-1].role for sample in samples] == [Role.ANSWER, Role.ANSWER, Role.TEXT]
    found = backend._found(config)
    assert found is not None
    assert len(found.sentences) == 3
