from __future__ import annotations

import json
import math
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.core.run.events import Event
from medsft.core.run.view import RunView, ViewFold, fold


def event(kind: str, time: float = 1.0, **data: object) -> Event:
    return Event(0, time, kind, data)


def step(iteration: int, **data: object) -> Event:
    return event("step", float(iteration), iteration=iteration, total=100, tokens=10, supervised_tokens=3, **data)


def plain(view: RunView) -> dict[str, object]:
    """Everything of a view in types that compare, NaN included."""

    def listed(values):
        return [None if math.isnan(value) else value for value in values]

    result = {f.name: getattr(view, f.name) for f in fields(view)}
    for name in ("series", "eval_series"):
        result[name] = {key: listed(values) for key, values in result[name].items()}
    return result | {"steps": list(view.steps), "eval_steps": list(view.eval_steps)}


number = st.none() | st.floats(0, 10)
any_event = st.one_of(
    st.builds(lambda i, loss, eta: step(i, loss=loss, eta_seconds=eta), st.integers(1, 30), number, number),
    st.builds(lambda i: event("run_started", iteration=i, total=100), st.integers(0, 20)),
    st.builds(lambda i, loss: event("eval", iteration=i, loss=loss), st.integers(1, 30), number),
    st.builds(lambda i: event("checkpoint", iteration=i, bytes=5, seconds=0.5), st.integers(1, 30)),
    st.sampled_from(
        [
            event("phase", name="saving"),
            event("warning", message="slow"),
            event("failed", reason="r", remedy="m", exit_code=6),
            event("finished", iteration=9, export="out"),
            event("stopped", iteration=9),
            event("of the future", x=1),
        ]
    ),
)


@settings(max_examples=150)
@given(st.lists(any_event, max_size=40), st.data())
def test_folding_in_pieces_is_folding_at_once(events, data):
    cut = data.draw(st.integers(0, len(events)))
    state = ViewFold()
    state.feed(events[:cut])
    before = plain(state.view())
    first = state.view()
    state.feed(events[cut:])
    assert plain(state.view()) == plain(fold(events))
    assert plain(first) == before, "a snapshot must not change under its reader"


@settings(max_examples=100)
@given(st.lists(any_event, max_size=40))
def test_lines_of_a_log_fold_as_their_events(events):
    state = ViewFold()
    state.feed_records([json.loads(event.to_line()) for event in events])
    assert plain(state.view()) == plain(fold(events))


def test_a_line_without_number_or_time_is_no_step():
    state = ViewFold()
    state.feed_records([{"kind": "step", "iteration": 1, "loss": 2.0}, {"kind": "phase"}, {"loss": 1.0}])
    assert plain(state.view()) == plain(RunView(series=state.view().series, eval_series=state.view().eval_series))


def test_steps_become_series():
    view = fold([event("run_started", iteration=0, total=100), step(1, loss=2.0, lr=1e-5), step(2, loss=None)])
    assert view.outcome == "running"
    assert (view.iteration, view.total, view.phase) == (2, 100, "training")
    assert list(view.steps) == [1, 2]
    assert view.series["loss"][0] == 2.0
    assert math.isnan(view.last("loss"))
    assert (view.tokens, view.supervised_tokens) == (20, 6)


def test_a_resume_forgets_what_happens_again():
    log = [event("run_started", iteration=0, total=100), *(step(i) for i in range(1, 8)), event("eval", iteration=6, loss=1.0)]
    log += [event("run_started", iteration=4, total=100, resumed=True), step(5, loss=0.5)]
    view = fold(log)
    assert list(view.steps) == [1, 2, 3, 4, 5]
    assert view.tokens == 50
    assert not view.eval_steps
    assert view.resumes == 1
    assert view.last("loss") == 0.5


def test_the_latest_start_wins_over_an_old_failure():
    log = [event("run_started", iteration=0, total=9), event("failed", reason="out of memory", remedy="x", exit_code=6)]
    assert fold(log).outcome == "failed"
    assert fold(log).exit_code == 6
    again = fold([*log, event("run_started", iteration=0, total=9)])
    assert (again.outcome, again.reason, again.exit_code) == ("running", "", None)


def test_the_end_of_a_run():
    assert fold([event("finished", iteration=9, export="out")]).export == "out"
    assert fold([event("stopped", iteration=9)]).outcome == "stopped"
    assert fold([]).outcome == "planned"
    assert fold([]).last("loss") is None
    assert fold([]).last_eval("loss") is None


def test_unknown_kinds_change_nothing():
    log = [event("run_started", iteration=0, total=9)]
    assert plain(fold([*log, event("of the future", time=99.0)])) == plain(fold(log))


def test_only_the_latest_warnings_are_kept():
    view = fold([event("warning", time=float(i), message=str(i)) for i in range(300)])
    assert len(view.warnings) == 200
    assert view.warnings[-1] == (299.0, "299")


def test_a_checkpoint_that_is_saved_again_counts_once():
    view = fold([event("checkpoint", iteration=5, bytes=1), event("checkpoint", time=2.0, iteration=5, bytes=2)])
    assert [(c.iteration, c.bytes, c.time) for c in view.checkpoints] == [(5, 2, 2.0)]


def asked(iteration: int, task: str, accuracy: float) -> Event:
    return event("eval_task", iteration=iteration, task=task, accuracy=accuracy, interval=[accuracy - 0.1, accuracy + 0.1])


def test_benchmarks_are_series_of_their_own_and_a_resume_forgets_what_happens_again():
    log = [event("run_started", iteration=0, total=9, keep_best="accuracy:a")]
    log += [asked(n, task, accuracy) for n, accuracy in ((0, 0.5), (2, 0.6), (4, 0.6), (6, 0.4)) for task in "ab"]
    log += [event("eval", iteration=n, loss=loss) for n, loss in ((2, 2.0), (4, 1.5), (6, 1.0))]
    log.append(event("eval_task", iteration=7, task="a", accuracy=None, interval=None))
    view = fold(log)
    assert list(view.tasks["a"].steps) == [0, 2, 4, 6]
    assert view.best_by == "a"
    assert view.best_accuracy("b") == (4, 0.6), "of equal accuracies that with the lower loss"
    assert view.best_iteration() == 4
    assert list(view.at(3).tasks["a"].accuracy) == [0.5, 0.6]
    again = fold([*log, event("run_started", iteration=2, total=9)])
    assert list(again.tasks["b"].steps) == [0, 2]
    assert again.best_iteration() == 2, "by the loss, where a start says nothing else"
    assert fold(log[:2]).best_accuracy("a") is None
