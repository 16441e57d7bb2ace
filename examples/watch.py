"""What every run in a folder is doing, then the latest one, followed to its end: `python watch.py [runs]`.

A run is a folder: it can be watched from any process and any number of times, while it trains and long after.
"""

import sys
from pathlib import Path

import medsft

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
runs = medsft.find_runs(folder)  # the latest first
if not runs:
    sys.exit(f"There is no run in {folder}.")

for run in runs:
    view = run.view()
    print(f"{run.path.name}: {run.state(view)}, iteration {view.iteration} of {view.total}, loss {view.last('loss')}")

for event in medsft.follow(runs[0]):  # from its first event on
    if event.kind == "step":
        print(f"iteration {event.data['iteration']}: loss {event.data['loss']:.4f}")

view = runs[0].view()
print(f"{view.outcome}: {view.reason or view.export}")
