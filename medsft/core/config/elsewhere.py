"""Values of options that other tools know and medsft does not, each with a sentence that says what to take instead."""

from __future__ import annotations

PRECISIONS = dict.fromkeys(
    ("fp16", "float16", "half", "16"),
    "fp16 is not offered: gradients underflow in it without loss scaling. bf16 has the range of fp32 in the same memory.",
)
FORMATS_OF_ROWS = {
    **dict.fromkeys(("chat_template", "openai", "chat", "chatml", "conversational"), "Rows with messages are `messages`."),
    **dict.fromkeys(("completion", "pretrain", "pt", "plain"), "Plain text is `text`; a question and an answer are `qa`."),
    **dict.fromkeys(("instruction", "prompt_completion", "input_output"), "A question and an answer are `qa`."),
    **dict.fromkeys(("multiple_choice", "medqa", "medmcqa"), "Questions with options are `mcq`."),
}
ADAPTERS = {
    **dict.fromkeys(
        ("dora", "adalora", "ia3", "prefix", "prompt", "vera", "loha", "lokr"),
        "Only `lora` is offered: it is the kind of adapter that programs which serve models load.",
    ),
    "qlora": "Write --adapter lora --base_precision nf4.",
    **dict.fromkeys(("full", "off", "false", "no", "sft"), "Training all weights is `none`."),
    **dict.fromkeys(("peft", "true", "yes"), "Low-rank adapters are `lora`."),
    "rslora": "Write --adapter lora --rslora.",
}
BASE_PRECISIONS = {
    **dict.fromkeys(("4bit", "int4", "fp4", "4", "q4"), "The format of 4 bits is `nf4`."),
    **dict.fromkeys(("8bit", "int8", "fp8", "8", "q8"), "8 bits are not offered: take bf16, or nf4 for less memory."),
    **dict.fromkeys(("fp16", "float16", "half", "16"), "fp16 is not offered: bf16 takes the same memory."),
}
OPTIMIZERS = {
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit", "adam8bit", "adam_8bit", "8bit"),
        "AdamW with moments in 8 bits is `adamw8bit`.",
    ),
    **dict.fromkeys(("adam", "adamw_torch", "adamw_torch_fused", "adamw_hf", "fusedadam"), "AdamW is `adamw`."),
    **dict.fromkeys(
        ("adafactor", "adagrad", "lion", "lion_8bit", "sgd", "rmsprop", "muon", "galore_adamw", "lomo", "came"),
        "Only AdamW is offered; `adamw8bit` takes less memory.",
    ),
}
OPTIMIZER_HELP = "AdamW with fp32 weights and moments; or with moments in 8 bits and, in bf16, no fp32 weights: half the memory"
"""The help of `--optimizer`, which names both values."""
