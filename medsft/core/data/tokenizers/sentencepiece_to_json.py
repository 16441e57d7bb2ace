"""A SentencePiece model as a ``tokenizer.json`` with the same ids, for models such as Llama's: BPE over the text as it is.

SentencePiece joins the two neighbors whose join has the highest score, so the merges are all splits of all pieces, by
falling score. For another kind of model the ids differ: whoever converts one holds them against the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

_PREFIX = "▁"


def fast_tokenizer(model: SentencePieceProcessor, special: Sequence[str] = ()) -> Tokenizer:
    """Convert a model. Strings in `special` are control tokens; those that are no pieces get the ids that follow, in order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocab = {model.id_to_piece(id_): id_ for id_ in range(model.vocab_size())}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(model),
            unk_token=model.id_to_piece(model.unk_id()),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # Normalizers see each stretch between special tokens on its own, so each gets the dummy prefix, as in training.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_PREFIX), normalizers.Replace(" ", _PREFIX)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_PREFIX, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _merges(model: SentencePieceProcessor) -> list[tuple[str, str]]:
    """Pairs of pieces in the order in which they are to be joined."""
    ordinary = [
        id_
        for id_ in range(model.vocab_size())
        if not (model.is_control(id_) or model.is_unknown(id_) or model.is_byte(id_) or model.is_unused(id_))
    ]
    known = {model.id_to_piece(id_) for id_ in ordinary}
    return [
        (piece[:cut], piece[cut:])
        for piece in map(model.id_to_piece, sorted(ordinary, key=model.get_score, reverse=True))
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
