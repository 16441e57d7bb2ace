"""The README of an exported model: what it is, what it was made from, how to prompt it. Figures come from the run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medsft.core.config.lora import FULL_8BIT
from medsft.core.data.dataset.manifest import read_manifest
from medsft.core.data.sources.row_format import distinct_formats
from medsft.core.planning.optimizer import ADAMW8BIT
from medsft.core.planning.plan import RunPlan
from medsft.core.printable import one_line
from medsft.core.run.view import RunView, TaskSeries
from medsft.core.text.adapter import adapter_text, formats_text, start_text, trained_text
from medsft.core.text.best import best_validation, share_text
from medsft.core.text.plan import mixture_text
from medsft.errors import DataError

_DATE = "But it writes the date of the day; the documents of the training have that of the day on which they were tokenized."
_TURNS = {"last": "the last of each conversation", "split": "all, each as the last of a document of its own"}
"""By the value of --turns, where it is not all answers of a document."""


def _figures(value: Callable[[str], float | None]) -> str:
    found = (value(name) for name in ("loss", "perplexity", "accuracy"))
    figures = [float("nan") if number is None else number for number in found]
    return "loss {:.4f}, perplexity {:.3f}, token accuracy {:.1%}".format(*figures)


def model_card(
    plan: RunPlan,
    run: RunView,
    iteration: int,
    *,
    writes_date: bool = False,
    trained_rows: int | None = None,
    has_modelfile: bool = False,
) -> str:
    """Return the Markdown text, with the front matter that model hubs read, for a checkpoint of `run`.

    `writes_date`: the chat template does. `trained_rows`: as `trained_text` takes them, of a run with an adapter.
    `has_modelfile`: a `Modelfile` lies beside the model.
    """
    view = run.at(iteration)
    config = plan.config
    date = f"\n{_DATE}" if writes_date else ""
    ollama = "; for Ollama, `Modelfile` has two commands" if has_modelfile else ""
    done = f"{view.iteration:,} of {plan.num_iterations:,}"
    rows = [
        ("Base model", f"{config.checkpoint} ({config.size:g}B), `{plan.base.fingerprint}`"),
        *data_rows(plan),
        *_held_out(plan),
        ("Iterations", f"{done} ({_epochs(plan, view):g} epochs, {plan.global_batch} documents each)"),
        ("Learning rate", f"{config.lr:g} to {config.min_lr:g}, cosine, {config.warmup_fraction:.0%} warm-up"),
        ("Longest document", f"{plan.train.longest:,} tokens"),
        ("Weight of question and system tokens in the loss", f"{config.loss_mask:g}"),
        ("Precision", f"{plan.precision}, {formats_text(plan)}"),
        *optimizer_rows(plan),
        *_adapter(plan, trained_rows),
    ]
    if view.last_eval("loss") is not None:
        when = "" if view.eval_steps[-1] == view.iteration else f" after iteration {view.eval_steps[-1]:,}"
        rows.append((f"Validation{when}", _figures(view.last_eval)))
    if view.base_eval("loss") is not None:
        rows.append(("Validation of the base model", _figures(view.base_eval)))
    rows += [(f"Accuracy in {_name(name)}", _accuracy(series)) for name, series in view.tasks.items()]
    if _validated_later(run, view) and (best := best_validation(run)):
        rows.append(("Of the whole run", best))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [medsft, medical]
---

# {Path(plan.export_dir).name}

`{config.checkpoint}` ({config.size:g}B parameters), fine-tuned on `{config.run_name}` with medsft.

| | |
|---|---|
{table}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))
```

The chat template gives exactly the text that was trained on, and generation stops at the end of an answer.{date}

`vllm serve THIS_FOLDER` prompts it so, too{ollama}.

## Limits

A language model can state what is not so. Nothing here has been evaluated for clinical use: do not base a decision about a
patient on its output. `medsft.json` holds the hashes of data and base model, the whole plan and the final figures.
"""


def _accuracy(series: TaskSeries) -> str:
    """Return the latest accuracy in a benchmark, and that of the base model where it was asked, too."""
    last, first = (share_text(*(column[place] for column in series.columns[1:])) for place in (-1, 0))
    return f"{last}; the base model {first}" if series.steps[0] == 0 < series.steps[-1] else last


def _validated_later(run: RunView, view: RunView) -> bool:
    """Tell whether the run was validated, or asked a benchmark, after the iteration of `view`."""
    asked = any(len(series.steps) > len(view.tasks.get(name, TaskSeries()).steps) for name, series in run.tasks.items())
    return asked or len(run.eval_steps) > len(view.eval_steps)


def _name(file: str) -> str:
    """Return the name of a file for a cell of the table, in one line and with nothing that ends the cell or the code."""
    return _cell(file.replace("`", "'"))


def _cell(text: str) -> str:
    """Return a text in one line, with nothing that ends a cell of the table."""
    return one_line(text).replace("|", "\\|")


def data_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Return (what, value) of the training set: how large it is, how its rows were read, and what a mixture is made of."""
    train = plan.train
    each = " in each epoch" if train.mixture else ""
    size = f"{train.documents:,} documents, {train.tokens:,} tokens{each}, `{train.fingerprint[:32]}`"
    return [
        ("Training set", size),
        *((f"Of `{_name(part.file)}`", mixture_text(part, train)) for part in train.mixture),
        *_rows_read(plan),
        *([("Answers trained on", _TURNS[plan.config.turns])] if plan.config.turns in _TURNS else []),
    ]


def _rows_read(plan: RunPlan) -> list[tuple[str, str]]:
    """Return how the rows of the training set were read; nothing where that set is not there or keeps no recipe."""
    try:
        manifest = read_manifest(Path(plan.train.folder))
    except (DataError, OSError):
        return []
    if manifest is None or manifest.recipe is None or manifest.fingerprint != plan.train.fingerprint:
        return []
    return [("Rows read as", _cell("; ".join(rows.words() for rows in distinct_formats(manifest.recipe.rows))))]


def optimizer_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """Return the optimizer where it is not AdamW with fp32 moments."""
    return [("Optimizer", f"{FULL_8BIT} (`--optimizer {ADAMW8BIT}`)")] if plan.config.optimizer == ADAMW8BIT else []


def _adapter(plan: RunPlan, rows: int | None) -> list[tuple[str, str]]:
    """Return what the adapter was, where one was trained, and what was trained of the model."""
    if plan.adapter is None:
        return []
    before = [("Trained on from", text)] if (text := start_text(plan)) else []
    return [("Adapter", adapter_text(plan.adapter)), *before, ("Trained", trained_text(plan, rows))]


def _held_out(plan: RunPlan) -> list[tuple[str, str]]:
    """Return how the validation documents were chosen, where --val has a share of the training set."""
    share, val = plan.config.val_share, plan.val
    if share is None or val is None:
        return []
    groups = ", whole groups of rows" if plan.config.group_key else ""
    return [("Held out to validate on", f"{val.documents:,} documents, {share:g} of the set by hash{groups}")]


def _epochs(plan: RunPlan, view: RunView) -> float:
    """Return how many passes over the documents the iterations of `view` are."""
    return round(plan.epochs * view.iteration / plan.num_iterations, 4)
