from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.run.events import Event, EventReader, EventWriter, parse, tail

plain = (
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
events = st.builds(
    Event,
    st.integers(0, 10**6),
    st.floats(0, 2e9).map(lambda t: round(t, 3)),
    st.sampled_from(["step", "eval", "warning", "of the future"]),
    st.dictionaries(st.text(min_size=1).filter(lambda k: k not in ("v", "seq", "time", "kind")), plain, max_size=4),
)
lines = events.map(lambda event: event.to_line().encode()) | st.sampled_from(
    [
        b'{"torn": 1\n',
        b"\n",
        b"[1]\n",
        b"null\n",
        b'{"seq": "x"}\n',
        b'{},{"seq":1,"time":1,"kind":"step"}\n',
        b"\xff\xfe\n",
        b"{}\n",
    ]
)


def one_by_one(log: bytes) -> list[Event]:
    return [event for line in log.split(b"\n")[:-1] if (event := parse(line)) is not None]


@settings(max_examples=150)
@given(st.lists(lines, max_size=12), st.data())
def test_any_split_of_the_bytes_gives_the_same_events(tmp_path_factory, chosen, data):
    log = b"".join(chosen)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=5)))
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    reader = EventReader(path)
    read: list[Event] = []
    with path.open("wb", buffering=0) as file:
        for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
            file.write(log[start:end])
            read += reader.read()
    assert read == one_by_one(log)


@settings(max_examples=100)
@given(events)
def test_a_line_gives_back_its_event(event):
    assert parse(event.to_line().encode()) == event


def test_numbers_that_are_not_finite_become_null():
    line = Event(0, 1.0, "step", {"loss": math.nan, "grad_norm": math.inf}).to_line()
    assert json.loads(line)["loss"] is None
    assert json.loads(line)["grad_norm"] is None


def test_a_writer_goes_on_counting_after_a_torn_line(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("phase", name="loading")
    writer.write("step", iteration=1)
    writer.close()
    with path.open("ab") as file:
        file.write(b'{"v":1,"seq":2,"ti')
    again = EventWriter(path)
    assert again.write("run_started", iteration=1).seq == 2
    again.close()
    assert [event.kind for event in EventReader(path).read()] == ["phase", "step", "run_started"]


def test_a_log_that_is_not_there_yet_is_empty(tmp_path):
    assert EventReader(tmp_path / "events.jsonl").read() == []


def test_a_log_is_more_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("medsft.core.run.events._CHUNK", 64)
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    for iteration in range(50):
        writer.write("step", iteration=iteration)
    writer.close()
    assert [event.data["iteration"] for event in EventReader(path).read()] == list(range(50))


def test_tail_yields_what_is_appended(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.write("step", iteration=1)
    followed = tail(path, poll_seconds=0.0)
    assert next(followed).data["iteration"] == 1
    writer.write("finished", iteration=1)
    assert next(followed).kind == "finished"
    writer.close()


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"null", b'{"seq":1}', b'{"seq":"a","time":1,"kind":"step"}'])
def test_what_is_not_an_event_is_none(line):
    assert parse(line) is None
