"""PEFT's adapter beside a model of transformers, trained on documents that medsft has tokenized. Prints one line of JSON.

    python bench/peer_peft.py BASE_DIR ADAPTER_DIR WORK.json

Runs in an environment of its own: it must not import anything of medsft. WORK.json says what is done in each iteration.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import peft
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("work")
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32, attn_implementation="sdpa")
    model = peft.PeftModel.from_pretrained(model, options.adapter, is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **work["adamw"])
    losses, norms = [], []
    for iteration in work["iterations"]:
        optimizer.param_groups[0]["lr"] = iteration["lr"]
        supervised = sum(sum(document["answer"]) for document in iteration["documents"])
        total = 0.0
        for document in iteration["documents"]:
            tokens, answer = torch.tensor(document["tokens"]), torch.tensor(document["answer"], dtype=torch.float32)
            logits = model(input_ids=tokens[None, :-1]).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            loss = (nll * answer).sum() / supervised
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, work["clip_grad"])))
        optimizer.step()
        optimizer.zero_grad()
    parameters = sum(parameter.numel() for parameter in trained)
    print(json.dumps({"version": peft.__version__, "trained": parameters, "losses": losses, "norms": norms}))


if __name__ == "__main__":
    main()
