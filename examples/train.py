"""Fine-tune from Python: `python train.py small_gpu.toml` does what `medsft sft --config small_gpu.toml` does."""

import sys
from pathlib import Path

import medsft

config = medsft.load_toml(Path(sys.argv[1]))
try:
    plan = medsft.prepare(config, medsft.load_settings())  # tokenizes, decides everything, compares with a run that is there
    run = medsft.start(plan)  # a process of its own: it goes on when this script ends
except medsft.MedsftError as error:
    sys.exit(str(error))

print(f"{plan.num_iterations} iterations of {plan.global_batch} documents, {plan.layout}, in {run.path}")
for warning in plan.warnings:
    print("warning:", warning)

for event in medsft.follow(run):
    if event.kind == "step":
        print(f"iteration {event.data['iteration']}: loss {event.data['loss']:.4f}")
    elif event.kind == "eval":
        print(f"validation after iteration {event.data['iteration']}: loss {event.data['loss']:.4f}")

view = run.view()
if view.outcome != "finished":
    sys.exit(f"{view.outcome}: {view.reason} {view.remedy}")
print("The model is in", view.export)
