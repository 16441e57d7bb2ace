"""TRL's SFTTrainer on the same base model and rows, as its documentation would have a user do it. Prints one line of JSON.

    python bench/peer_trl.py BASE_DIR ROWS.jsonl --precision bf16

Runs in an environment of its own: it must not import anything of medsft. Tokens are those of documents, cut at --seq; padding
does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("rows")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--global-batch", type=int, default=8)
    parser.add_argument("--adapter", action="store_true", help="train a LoRA of PEFT with the defaults of medsft")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        steps = train(options, folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    print(json.dumps({"version": trl.__version__, "memory_bytes": memory, "steps": steps}))


def train(options: argparse.Namespace, folder: str) -> list[dict[str, float]]:
    """Return tokens, supervised tokens and seconds of each step."""
    steps: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append({"tokens": 0, "supervised_tokens": 0, "seconds": -time.perf_counter()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps[-1]["seconds"] += time.perf_counter()

    class Counting(trl.SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            steps[-1]["tokens"] += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            steps[-1]["supervised_tokens"] += int((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *rest, **more)

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # A frozen model needs no fp32 weights; those that are trained do.
    bf16 = options.adapter and options.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    Counting(
        model=AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype, attn_implementation="sdpa"),
        peft_config=lora() if options.adapter else None,
        args=trl.SFTConfig(
            output_dir=folder,
            max_length=options.seq,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.global_batch // options.micro_batch,
            max_steps=options.steps,
            learning_rate=2e-4 if options.adapter else 2e-5,
            lr_scheduler_type="cosine",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            bf16=options.precision == "bf16",
            completion_only_loss=True,
            gradient_checkpointing=False,
            optim="adamw_torch",
            max_grad_norm=1.0,
            weight_decay=0.0 if options.adapter else 0.1,
            adam_beta2=0.95,
        ),
        train_dataset=chats(options.rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()
    return steps


def lora() -> Any:
    """Return an adapter of all linear layers, as medsft trains by default."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def chats(path: str) -> Dataset:
    """Return the rows as conversations whose completion is trained on."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - as a user would
        rows = [json.loads(line) for line in file]
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["gold"]}],
            }
            for row in rows
        ]
    )


if __name__ == "__main__":
    main()
