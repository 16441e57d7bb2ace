"""In words: when a run was at its best, on its validation set or in a benchmark, and whether it beats its base model."""

from __future__ import annotations

from medsft.core.run.view import RunView
from medsft.core.units import count


def best_validation(view: RunView) -> str:
    """Return what the validations of a run say about its checkpoints; "" where it has not validated after a step."""
    return _by_loss(view) if view.best_by is None else _by_accuracy(view, view.best_by)


def task_results(view: RunView) -> list[str]:
    """Return a sentence for each benchmark that a run was asked: its accuracy at the end, at best, and of the base model."""
    return [f"{name}: {_task_result(view, name)}." for name in view.tasks]


def share_text(accuracy: float, low: float, high: float) -> str:
    """Return an accuracy with its 95 % interval, as ``61.0 % (54.1 to 67.5)``."""
    return f"{_percent(accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def _by_loss(view: RunView) -> str:
    best, last = view.best_eval(), view.last_eval("loss")
    if best is None or last is None:
        return ""
    iteration, loss = best
    if iteration == view.eval_steps[-1]:
        found = f"The last validation is the best: loss {loss:.4f}"
    else:
        found = f"Best validation after iteration {count(iteration)}{_epochs(view, iteration)}: loss {loss:.4f}"
        found += f"; the last is {last / loss - 1:.1%} higher" if loss > 0 and last > loss else ""
    base = view.base_eval("loss")
    if base is None:
        return f"{found}."
    if base <= loss:
        return f"{found}. The base model is better than every checkpoint: {base:.4f}."
    return f"{found}. The base model: {base:.4f}."


def _by_accuracy(view: RunView, task: str) -> str:
    best = view.best_accuracy(task)
    if best is None:
        return ""
    (iteration, accuracy), series = best, view.tasks[task]
    if iteration == series.steps[-1]:
        found = f"The last is the best by the accuracy in {task}: {_percent(accuracy)}"
    else:
        found = f"Best after iteration {count(iteration)}{_epochs(view, iteration)} by the accuracy in {task}: "
        found += f"{_percent(accuracy)} against {_percent(series.accuracy[-1])} of the last"
    if series.steps[0]:
        return f"{found}."
    base = series.accuracy[0]
    if base >= accuracy:
        return f"{found}. No checkpoint is better than the base model: {_percent(base)}."
    return f"{found}. The base model: {_percent(base)}."


def _task_result(view: RunView, name: str) -> str:
    series, best = view.tasks[name], view.best_accuracy(name)
    last = series.steps[-1]
    if best is None:
        return f"{share_text(*(column[-1] for column in series.columns[1:]))} of the base model"
    found = f"{share_text(*(column[-1] for column in series.columns[1:]))} after iteration {count(last)}"
    if best[1] > series.accuracy[-1]:
        found += f", {_percent(best[1])} after {count(best[0])}"
    return found if series.steps[0] else f"{found}, {_percent(series.accuracy[0])} before the first"


def _epochs(view: RunView, iteration: int) -> str:
    """Return after how many epochs an iteration is, in brackets; "" where nobody knows."""
    return f" ({view.epoch * iteration / view.iteration:.1f} of {view.epoch:.1f} epochs)" if view.epoch else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
