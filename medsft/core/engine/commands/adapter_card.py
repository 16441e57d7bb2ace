"""The README of an exported adapter: what it belongs to, how it is loaded, and by what it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

from medsft.core.engine.commands.model_card import data_rows, optimizer_rows
from medsft.core.engine.commands.rounding import rounding_note
from medsft.core.engine.commands.verify import LogitDifference
from medsft.core.engine.formats.run_adapter import TrainedAdapter
from medsft.core.models.other_folders import hub_name
from medsft.core.planning.plan import RunPlan
from medsft.core.printable import one_line
from medsft.core.run.view import RunView
from medsft.core.text.adapter import adapter_text, start_text, trained_text
from medsft.core.units import counted

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`."""
_VLLM_DEFAULT = 16


def adapter_card(view: RunView, trained: TrainedAdapter, *, folder: str = "THIS_FOLDER") -> str:
    """Return the Markdown text, with the front matter that model hubs read; `folder` is where its reader finds the adapter."""
    plan = trained.plan
    assert plan.adapter is not None
    config, base = plan.config, trained.weights
    notes = "\n".join(f"- {note}" for note in loading_notes(trained))
    path = one_line(str(base))
    before = f"\n| Trained on from | {text} |" if (text := start_text(plan)) else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in (*data_rows(plan), *optimizer_rows(plan)))
    return f"""---
library_name: peft
base_model: {json.dumps(hub_name(base) or path)}
base_model_relation: adapter
pipeline_tag: text-generation
tags: [medsft, medical, lora]
---

# {Path(plan.export_dir).name}, adapter

An adapter of `{config.checkpoint}` ({config.size:g}B parameters), trained on `{config.run_name}` with medsft.

| | |
|---|---|
| Base model | `{path}`, fingerprint `{plan.base.fingerprint}` |
| Adapter | {adapter_text(plan.adapter)} |{before}
| Trained | {trained_text(plan, trained.trained_rows)} |
| Iterations | {view.iteration:,} of {plan.num_iterations:,} |
{rows}

## Use

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoPeftModelForCausalLM.from_pretrained("{folder}")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200, eos_token_id=tokenizer.eos_token_id)[0]))
```

The base is looked for at `{path}`. Where it lies elsewhere, write its path or its name on a hub as `base_model_name_or_path`
into `adapter_config.json`. Generation must be told to stop at `tokenizer.eos_token_id`, which ends an answer: a program that
loads an adapter takes the end of the base model.

{notes}

`medsft merge {folder} --base BASE --to DIR` makes a model of the two that needs no adapter.

## Limits

A language model can state what is not so. Nothing here has been evaluated for clinical use: do not base a decision about a
patient on its output.
"""


def loading_notes(trained: TrainedAdapter) -> list[str]:
    """Return what a person must know to load the adapter, one sentence or two each."""
    plan, adapter = trained.plan, trained.adapter
    notes = []
    if plan.base.kind != "hf":
        notes.append(
            f"The base is {one_line(plan.base.path)}, in a format that PEFT does not read. Convert it (medsft convert BASE DIR "
            "--to hf) and name DIR as `base_model_name_or_path` in adapter_config.json."
        )
    rows = next(iter(adapter.rows.values()), ())
    size, base_rows = plan.base.model.vocab_size, plan.base.base_vocab_size
    if size > base_rows:
        notes.append(
            f"The base has {base_rows:,} rows in its tables, the adapter's tokenizer {size:,} tokens. "
            "`AutoPeftModelForCausalLM` lengthens the tables by itself; before `PeftModel.from_pretrained(model, ...)` call "
            f"`model.resize_token_embeddings({size})`; for `AutoModelForCausalLM.from_pretrained` on the adapter, write a base "
            f"with these rows once (medsft convert BASE DIR --to hf --true_vocab_size {size}) and name DIR as "
            "`base_model_name_or_path`."
        )
    if rows:
        notes.append(
            f"vLLM does not load it, for it holds rows of {counted(len(rows), 'token')} that the base did not have. Serve the "
            "merged model."
        )
    elif adapter.lora.rank > _VLLM_DEFAULT:
        needed = next((rank for rank in _VLLM_RANKS if rank >= adapter.lora.rank), None)
        notes.append(
            f"vLLM loads it with `--enable-lora --max-lora-rank {needed}`."
            if needed
            else f"vLLM loads no adapter of rank {adapter.lora.rank}. Serve the merged model."
        )
    if trained.base_precision == "nf4":
        notes.append(
            "It was trained over the base in nf4 (blocks of 64, doubly quantized). Over the base in bf16 it computes something "
            "else than in training; `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', "
            "bnb_4bit_use_double_quant=True)` is close to it, and the merged model has it exactly."
        )
    return notes


def merged_section(plan: RunPlan, rounding: LogitDifference | None, *, has_adapter: bool) -> str:
    """Return what the card of a merged model says of the adapter in it."""
    where = "; it lies in `adapter/` by itself, too" if has_adapter else ""
    text = f"\n## The adapter in it\n\nAdapter and base were added up in fp32 and rounded to {plan.precision} once{where}."
    if rounding is not None:
        text += f"\n{rounding_note(rounding, plan.precision, over='of documents of the run')}"
    return f"{text}\n"
