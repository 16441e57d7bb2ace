"""What options are called elsewhere, so that who types the name of another tool's is told ours.

From the trainers of transformers and TRL, from LLaMA-Factory, axolotl, torchtune and Megatron-LM. Names are compared without
regard to case, dashes and underscores.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

_OURS: Mapping[str, str] = {
    "to": "output_dir output out out_dir save_dir save_path output_path",
    "checkpoint": "model model_name model_name_or_path model_path base_model pretrained_model load load_dir ckpt "
    "adapter_name_or_path adapter_path peft_model_id lora_model_dir",
    "size": "model_size num_parameters params",
    "run_name": "experiment experiment_name dataset_id",
    "data": "dataset datasets dataset_name dataset_path dataset_dir train_file train_files train_data train_dataset data_path "
    "data_files train_data_path training_data input_data jsonl",
    "val": "validation validation_file validation_data validation_split val_file val_data val_dataset val_set eval_file "
    "eval_data eval_dataset valid valid_data valid_data_path dev val_size val_split val_set_size test_size eval_split "
    "validation_split_percentage",
    "group_key": "group_by group_column groups patient_key subject_key",
    "tokenized_data_dir": "preprocessed_dir dataset_prepared_path tokenized_path",
    "question_key": "prompt_key prompt_column question_column question_field instruction_key input_key field_instruction",
    "answer_key": "response_key response_column answer_column answer_field output_key target_column field_output",
    "format": "dataset_type dataset_format data_format row_format formatting type prompt_strategy",
    "messages_key": "messages_column messages_field conversations_key conversation_column conversations_column field_messages "
    "chat_key messages_property",
    "role_map": "roles role_mapping role_tags message_property_mappings user_tag assistant_tag",
    "options_key": "choices_key options_column choices_column",
    "reasoning_key": "reasoning_column thinking_key cot_key thought_key",
    "text_key": "text_column text_field dataset_text_field json_keys",
    "system_key": "system_column system_field field_system",
    "template": "chat_template prompt_template conv_template chat_format",
    "seq": "max_seq_length max_seq_len max_length max_len seq_length seq_len sequence_len sequence_length cutoff_len "
    "model_max_length block_size context_length encoder_seq_length",
    "truncate": "truncation truncation_side",
    "adapter": "use_peft peft use_lora lora peft_type peft_method adapter_type finetuning_type tuner_type train_type",
    "lora_rank": "lora_r r lora_dim lora_attn_dim peft_r adapter_dim adapter_rank",
    "lora_alpha": "alpha peft_alpha adapter_alpha",
    "lora_targets": "lora_target lora_target_modules target_modules lora_modules lora_attn_modules lora_target_linear "
    "apply_lora_to_mlp",
    "rslora": "use_rslora",
    "base_precision": "load_in_4bit load_in_8bit quantization quantize quantization_bit quantization_method quant_type bits "
    "bnb_4bit_quant_type use_qlora qlora base_dtype",
    "export": "merge_lora merge_adapter merge_adapters merge_and_unload save_merged",
    "epochs": "num_train_epochs num_epochs n_epochs train_epochs max_epochs epoch",
    "iters": "iterations max_steps train_iters train_steps num_steps total_steps num_iterations steps",
    "max_iters": "max_steps_per_run exit_interval",
    "global_batch": "batch_size global_batch_size train_batch_size total_batch_size effective_batch_size bs "
    "gradient_accumulation_steps grad_accum",
    "micro_batch": "micro_batch_size per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size "
    "train_micro_batch_size_per_gpu per_device_eval_batch_size eval_batch_size",
    "loss_mask": "train_on_inputs train_on_prompt mask_prompt completion_only_loss assistant_only_loss scalar_loss_mask",
    "lr": "learning_rate peak_lr max_lr base_lr",
    "min_lr": "min_learning_rate lr_min end_lr final_lr min_lr_rate",
    "warmup_fraction": "warmup warmup_ratio warmup_steps warmup_iters lr_warmup_fraction lr_warmup_iters num_warmup_steps",
    "weight_decay": "wd decay",
    "adam_beta1": "beta1 beta_1",
    "adam_beta2": "beta2 beta_2",
    "adam_eps": "adam_epsilon eps epsilon",
    "clip_grad": "max_grad_norm gradient_clip_val gradient_clipping grad_clip max_norm clip_grad_norm",
    "optimizer": "optim optimizer_type optimizer_name optimizer_class",
    "precision": "bf16 fp16 fp32 dtype torch_dtype mixed_precision half",
    "recompute": "gradient_checkpointing activation_checkpointing recompute_granularity recompute_activations grad_checkpoint",
    "eval_interval": "eval_steps evaluation_strategy eval_strategy eval_freq eval_every evals_per_epoch val_check_interval",
    "seed": "random_seed data_seed",
    "tp": "tensor_parallel tensor_parallel_size tensor_model_parallel_size tp_size tensor_parallel_degree",
    "pp": "pipeline_parallel pipeline_parallel_size pipeline_model_parallel_size pp_size pipeline_parallel_degree",
    "nproc_per_node": "nproc num_processes num_gpus gpus n_gpus gpus_per_node num_gpus_per_node devices world_size",
    "nodes": "nnodes num_nodes num_machines n_nodes",
    "rank": "node_rank machine_rank",
    "addr": "master_addr main_process_ip rdzv_endpoint host",
    "port": "master_port main_process_port",
    "save_checkpoint_dir": "output_dir out_dir output save save_dir save_path checkpoint_dir logging_dir runs_dir",
    "save_interval": "save_steps save_strategy save_every checkpoint_interval saves_per_epoch save_freq",
    "keep_last": "save_total_limit max_checkpoints keep_checkpoints",
    "keep_best": "load_best_model_at_end metric_for_best_model",
    "patience": "early_stopping_patience early_stopping",
    "id": "run_id suffix tag",
    "no_autoaccept_iters": "confirm interactive ask",
    "verify": "check test_logits",
    "iteration": "iter step checkpoint_iteration load_iters",
    "config": "config_file cfg yaml run_config",
}
"""Our option: what others call it. An option of ours may stand for several, and one of theirs for several of ours."""
_SENTENCES: Mapping[str, str] = {
    "resume_from_checkpoint": "The same command resumes a run that was stopped; so does `medsft resume RUN`.",
    "resume": "The same command resumes a run that was stopped; so does `medsft resume RUN`.",
    "overwrite_output_dir": "Another run beside the first needs a name of its own: --id NAME.",
    "lr_scheduler_type": "The learning rate follows a cosine from --lr to --min_lr, after a warm-up.",
    "lr_decay_style": "The learning rate follows a cosine from --lr to --min_lr, after a warm-up.",
    "optim": "The optimizer is AdamW (--optimizer adamw), or the same in less memory (adamw8bit).",
    "gradient_accumulation_steps": "Micro-batches follow from --global_batch, --micro_batch and the number of processes.",
    "grad_accum": "Micro-batches follow from --global_batch, --micro_batch and the number of processes.",
    "deepspeed": "--tp and --pp split the model over ranks; all further ranks are data parallel, with sharded states (FSDP).",
    "fsdp": "--tp and --pp split the model over ranks; all further ranks are data parallel, with sharded states (FSDP).",
    "report_to": "A run writes events.jsonl; follow it with `medsft watch RUN`.",
    "logging_steps": "Every iteration is logged; follow a run with `medsft watch RUN`.",
    "log_interval": "Every iteration is logged; follow a run with `medsft watch RUN`.",
    "packing": "Documents are always packed without padding, and do not attend to each other.",
    "sample_packing": "Documents are always packed without padding, and do not attend to each other.",
    "interleave_probs": "Write the share of an epoch behind each file: --data a.jsonl:0.3 b.jsonl:2.",
    "mix_strategy": "Write the share of an epoch behind each file: --data a.jsonl:0.3 b.jsonl:2.",
    "data_weights": "Write the share of an epoch behind each file: --data a.jsonl:0.3 b.jsonl:2.",
    **dict.fromkeys(
        ("use_peft", "peft", "use_lora", "lora", "finetuning_type", "train_type"), "An adapter is trained with --adapter lora."
    ),
    **dict.fromkeys(
        ("load_in_4bit", "use_qlora", "qlora", "bnb_4bit_quant_type"),
        "A frozen base model of 4 bits (QLoRA): --adapter lora --base_precision nf4.",
    ),
    "load_in_8bit": "8 bits are not offered: --base_precision bf16, or nf4 for less memory.",
    "lora_dropout": "Adapters are trained without dropout: leave it away.",
    "use_dora": "Only plain low-rank adapters are trained (--adapter lora), for other programs load these.",
    "modules_to_save": "Rows of new tokens are trained with every adapter, in both tables; nothing else is trained whole.",
    "warmup_steps": "Give the share of the iterations: --warmup_fraction 0.1.",
    "warmup_iters": "Give the share of the iterations: --warmup_fraction 0.1.",
    "num_warmup_steps": "Give the share of the iterations: --warmup_fraction 0.1.",
}
"""Where a name alone would not help."""


def suggestion(name: str, known: Collection[str], *, mark: str = "") -> str:
    """Return what to write instead of an option that does not exist, "" where there is no idea.

    `known` are the names that exist here; each is shown after `mark`, which is `--` for flags.
    """
    plain = _plain(name)
    if plain in _SENTENCES_PLAIN and "checkpoint" in known:  # they are about a run
        return _SENTENCES_PLAIN[plain]
    candidates = [ours for ours in _THEIRS.get(plain, ()) if ours in known]
    if not candidates:
        by_plain = {_plain(one): one for one in known}
        close = difflib.get_close_matches(plain, by_plain, n=1, cutoff=0.6)
        candidates = [by_plain[one] for one in close]
    return f"Did you mean `{mark}{candidates[0]}`?" if candidates else ""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a question with the known name that is most like `name`, or nothing where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean `{close[0]}`?" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _reversed() -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for ours, theirs in _OURS.items():
        for name in theirs.split():
            result.setdefault(_plain(name), []).append(ours)
    return result


_THEIRS = _reversed()
_SENTENCES_PLAIN = {_plain(name): text for name, text in _SENTENCES.items()}
