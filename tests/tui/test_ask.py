"""The conversation with a run's model, from the monitor: with models that answer at once."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from textual.widgets import Input, Static

from medsft.core.evaluation import chat, model
from medsft.errors import DataError
from medsft.tui.screens.ask import AskScreen
from medsft.tui.screens.monitor import MonitorScreen

HOSTILE = "[red]5 mg[/red]\x1b[2J"


class Echo:
    def __init__(self, source, sampling):
        self.model, self.asked, self.closed = source, [], False
        self.go_on = threading.Event()
        self.go_on.set()

    def wait(self):
        self.go_on.wait(10)

    def mark(self):
        return len(self.asked)

    def go_back(self, mark):
        del self.asked[mark:]

    def forget(self):
        self.asked.clear()

    def close(self):
        self.closed = True

    def ask(self, question):
        if question == "long":
            raise DataError("too long")
        self.asked.append(question)
        yield f"{self.model.name} {len(self.asked)}: "
        yield HOSTILE


@pytest.fixture
def chats(monkeypatch):
    made = []
    monkeypatch.setattr(model, "find_model", lambda path: SimpleNamespace(name="run", notes=("A remark.",)))
    monkeypatch.setattr(model, "find_base_of", lambda path: SimpleNamespace(name="base", notes=()))

    def chat_with(source, sampling):
        made.append(Echo(source, sampling))
        return made[-1]

    monkeypatch.setattr(chat, "Chat", chat_with)
    return made


def said(app):
    return [str(place.render()) for place in app.screen.query("#said Static").results(Static)]


async def ask(pilot, until, question, answers):
    before = len(said(pilot.app))
    await until(pilot, lambda: not any(worker.is_running for worker in pilot.app.screen.workers if worker.group == "ask"))
    pilot.app.screen.query_one("#question", Input).value = question
    await pilot.press("enter")
    await until(pilot, lambda: len(said(pilot.app)) == before + 1 + answers and "..." not in said(pilot.app)[-1])


async def test_questions_are_answered_in_turn_and_nothing_steers_the_screen(monitor, until, chats):
    app = monitor("stopped")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and said(app))
        assert said(app) == ["Ready. A remark."]
        await ask(pilot, until, "the dose?", 1)
        await until(pilot, lambda: said(app)[-1].endswith("2J"))
        assert said(app)[1:] == ["the dose?", "run 1: [red]5 mg[/red]\N{SYMBOL FOR ESCAPE}[2J"]
        await ask(pilot, until, "long", 2)
        assert said(app)[-1] == "too long"
        await pilot.press("ctrl+n")
        await until(pilot, lambda: not said(app))
        await ask(pilot, until, "again?", 1)
        await until(pilot, lambda: said(app)[-1].startswith("run 1:"))
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        assert [each.closed for each in chats] == [True]


async def test_with_the_base_model_each_question_has_two_answers(monitor, until, chats):
    app = monitor("finished")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and said(app))
        await pilot.press("ctrl+b")
        await until(pilot, lambda: len(chats) == 3 and said(app))
        await ask(pilot, until, "the dose?", 2)
        await until(pilot, lambda: said(app)[-1].endswith("2J"))
        assert [text.splitlines()[0] for text in said(app)[-2:]] == ["run", "base"]


async def test_a_run_that_trains_is_not_asked(monitor, until, chats):
    app = monitor("running")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.snapshot)
        await pilot.press("a")
        await pilot.pause()
        assert isinstance(app.screen, MonitorScreen)
