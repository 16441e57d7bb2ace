"""In words: when a run was at its best on the validation set, and whether it is better than its base model."""

from __future__ import annotations

from medsft.core.run.view import RunView
from medsft.core.units import count


def best_validation(view: RunView) -> str:
    """Return what the validation losses of a run say about its checkpoints; "" where it has not validated after a step."""
    best, last = view.best_eval(), view.last_eval("loss")
    if best is None or last is None:
        return ""
    iteration, loss = best
    if iteration == view.eval_steps[-1]:
        found = f"The last validation is the best: loss {loss:.4f}"
    else:
        at = f" ({view.epoch * iteration / view.iteration:.1f} of {view.epoch:.1f} epochs)" if view.epoch else ""
        found = f"Best validation after iteration {count(iteration)}{at}: loss {loss:.4f}"
        found += f"; the last is {last / loss - 1:.1%} higher" if loss > 0 and last > loss else ""
    base = view.base_eval("loss")
    if base is None:
        return f"{found}."
    if base <= loss:
        return f"{found}. The base model is better than every checkpoint: {base:.4f}."
    return f"{found}. The base model: {base:.4f}."
