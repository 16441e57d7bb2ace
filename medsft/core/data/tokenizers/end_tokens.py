"""The ids that an exported model names beside its weights: where generation ends, and what fills up a batch."""

from __future__ import annotations

from collections.abc import Sequence

from medsft.core.data.tokenizers.base import OpenedTokenizer
from medsft.core.models.config import ModelConfig

_PADS = ("<|finetune_right_pad_id|>", "<pad>", "<PAD>", "[PAD]", "<|pad|>", "<|PAD_TOKEN|>", "<|endoftext|>")
"""Names that public models give their padding, and that people use for it where a model gives none."""


def end_tokens(opened: OpenedTokenizer, others: Sequence[int] = ()) -> list[int]:
    """The ids at which generation stops: the end of an answer in the documents, the tokenizer's end of text, then `others`.

    `others` are those of the base model: a base that may end in several ways (Llama 3's chat models) still may. One that is an
    ordinary word of the tokenizer is none: a `config.json` that nobody filled in has the ids of Llama 1.
    """
    tokenizer = opened.tokenizer
    known = [id_ for id_ in others if 0 <= id_ < tokenizer.vocab_size and tokenizer.token(id_) in tokenizer.whole_strings]
    ids = (opened.stop_id, tokenizer.eos_id, *known)
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def other_ends(base: ModelConfig) -> list[int]:
    """The ids at which a base model ends a text, as its own files say."""
    return [id_ for id_ in (base.eos_token_id, *base.other_end_token_ids) if id_ is not None]


def pad_id(opened: OpenedTokenizer) -> int | None:
    """The id of the padding: a token of the vocabulary that documents have no use for; None in an empty vocabulary.

    Not the one that ends an answer while there is another: trainers leave padding out of the loss by its id, and the next
    fine-tuning would unlearn to stop.
    """
    tokenizer, special = opened.tokenizer, opened.tokenizer.special_ids
    reserved = sorted(id_ for token, id_ in special.items() if "reserved" in token or "unused" in token)
    named = [special[name] for name in _PADS if name in special]
    # Of the rest, what stands in few documents: the template's own tokens come last.
    rest = [id_ for token, id_ in special.items() if token not in opened.template.jinja]
    for id_ in (tokenizer.pad_id, *named, *reserved, tokenizer.unk_id, tokenizer.eos_id, *rest, *special.values()):
        if id_ is not None and id_ != opened.stop_id:
            return id_
    return opened.stop_id
