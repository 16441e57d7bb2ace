"""`medsft ask` with models that answer at once: what is printed, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner, Result

from medsft.cli import ask as cli_ask
from medsft.cli.app import app
from medsft.core.evaluation import chat

ESCAPE = "\x1b[2J"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_base(tmp_path / "model")


class Echo:
    """A model that says what it was asked, and steers the terminal."""

    def __init__(self, model: Any, sampling: Any, *, system: str = "", precision: str | None = None) -> None:
        self.model, self.asked = model, list[str]()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        pass

    def mark(self) -> int:
        return len(self.asked)

    def go_back(self, mark: int) -> None:
        del self.asked[mark:]

    def forget(self) -> None:
        self.asked.clear()

    def ask(self, question: str) -> Iterator[str]:
        self.asked.append(question)
        if question == "long" and self.model.name == "base":
            raise KeyboardInterrupt
        yield " "
        yield f"{len(self.asked)}: {question}"
        yield f"{ESCAPE}!"


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "Chat", Echo)


def invoke(*arguments: str, text: str | None = None) -> Result:
    return CliRunner(env={"TERM": "dumb"}).invoke(app, ["ask", *arguments], input=text)


def test_a_question_is_answered_without_what_steers_a_terminal() -> None:
    result = invoke("model", "the dose?")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "1: the dose?\N{SYMBOL FOR ESCAPE}[2J!\n"
    assert "no chat template of its own" in result.stderr


def test_a_question_may_come_through_a_pipe() -> None:
    assert invoke("model", text="the dose?\n").stdout.startswith("1: the dose?")
    assert invoke("model", text="").exit_code == 2


def test_json_is_one_document() -> None:
    record = json.loads(invoke("model", "the dose?", "--json").stdout)
    assert record == {"question": "the dose?", "answer": f"1: the dose?{ESCAPE}!"}


def test_several_turns_are_one_conversation_until_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", "", "two", "/new", "three", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    assert list(cli_ask._typed()) == ["one", "", "two", "/new", "three"]


def test_an_answer_that_is_broken_off_leaves_no_conversation_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the answer of the second model; the first has answered by then."""
    chats = [Echo(SimpleNamespace(name=name), None) for name in ("run", "base")]
    left = iter(chats)
    monkeypatch.setattr(chat, "Chat", lambda *_, **__: next(left))
    monkeypatch.setattr(cli_ask, "_typed", lambda: iter(["one", "long", "two"]))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    models: Any = [each.model for each in chats]
    cli_ask._talk(models, None, chat.Sampling(), "", None, plain=True, json=False)
    assert [each.asked for each in chats] == [["one", "two"]] * 2


def test_the_answers_to_a_file_go_to_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(model: Any, asked: Any, *_: Any, keep: Path, **__: Any) -> Iterator[tuple[int, str]]:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.touch()
        yield from ((n, f"answer {n}") for n in reversed(range(len(asked))))

    monkeypatch.setattr(chat, "answers_to", answers)
    Path("q.jsonl").write_text('{"prompt": "a", "id": "x"}\n{"question": "b"}\n')
    result = invoke("model", "--in", "q.jsonl", "--out", "new/a.jsonl")
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line) for line in Path("new/a.jsonl").read_text().splitlines()] == [
        {"id": "x", "question": "a", "answer": "answer 0"},
        {"id": 2, "question": "b", "answer": "answer 1"},
    ]
    assert result.stdout == "new/a.jsonl\n"
    assert [path.name for path in Path("new").iterdir()] == ["a.jsonl"], "what a kill would have left is gone"
    Path("fall.jsonl").write_text('{"Fall": "c"}\n')
    assert invoke("model", "--in", "fall.jsonl", "--out", "b.jsonl", "--question_key", "Fall").exit_code == 0
    assert json.loads(Path("b.jsonl").read_text())["question"] == "c"
    again = invoke("model", "--in", "q.jsonl", "--out", "new/a.jsonl")
    assert again.exit_code == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("model", "q", "--with", "other"), 2, "knows base"),
        (("model", "q", "--with", "base"), 2, "does not say which base model"),
        (("model", "--in", "q.jsonl"), 2, "go together"),
        (("model", "q", "--in", "q.jsonl", "--out", "a.jsonl"), 2, "leave out the one"),
        (("model", "q", "--precision", "fp8"), 2, "fp8"),
        (("model", "q", "--question_key", "Fall"), 2, "--in FILE"),
        (("model", "--in", "none.jsonl", "--out", "a.jsonl"), 3, "none.jsonl"),
        (("nowhere", "q"), 2, "no run `nowhere`"),
        (("model/tokenizer.json", "q"), 4, "a folder or a .gguf file"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = invoke(*arguments)
    assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
