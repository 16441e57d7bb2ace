"""Fine-tune a Llama-family medical language model on question/answer JSONL."""

__version__ = "0.1.0"
