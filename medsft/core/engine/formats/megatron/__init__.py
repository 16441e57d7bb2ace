"""Checkpoints of Megatron-LLM: read at any layout and written at any layout, under Hugging Face names."""

from medsft.core.engine.formats.megatron.reader import MegatronSource, open_megatron
from medsft.core.engine.formats.megatron.writer import write_megatron

__all__ = ["MegatronSource", "open_megatron", "write_megatron"]
