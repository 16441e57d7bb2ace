from __future__ import annotations

from functools import partial

import pytest
import torch

from medsft.core.engine.nn.attention import PackedSequences
from medsft.core.engine.nn.model import Decoder

LENGTHS = (9, 1, 23)


def tokens(total: int = sum(LENGTHS), vocab: int = 96) -> torch.Tensor:
    return torch.randint(vocab, (total,), generator=torch.Generator().manual_seed(1))


def reference_logits(reference, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([reference(document[None]).logits[0] for document in ids.split(LENGTHS)])


def test_logits_equal_those_of_transformers(variant):
    reference = variant.reference()
    model, ids = variant.ours(reference), tokens()
    with torch.no_grad():
        ours = model.logits(model(ids, PackedSequences.of(LENGTHS)))
        torch.testing.assert_close(ours, reference_logits(reference, ids), atol=1e-4, rtol=0)


def test_gradients_equal_those_of_transformers(variant):
    reference = variant.reference()
    model, ids = variant.ours(reference), tokens()
    weights = torch.randn(sum(LENGTHS), 96, generator=torch.Generator().manual_seed(2)) / 100
    (model.logits(model(ids, PackedSequences.of(LENGTHS))) * weights).sum().backward()
    (reference_logits(reference, ids) * weights).sum().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3, msg=partial("{}: {}".format, name)
        )


def test_parameters_are_those_of_the_configuration(variant):
    with torch.device("meta"):
        model = Decoder(variant.config())
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == dict(variant.config().parameter_shapes())


@pytest.mark.parametrize("tied", [False, True])
def test_stages_in_a_row_are_the_whole_model(tiny, tied):
    config, ids, sequences = tiny.but(tie_word_embeddings=tied).config(), tokens(), PackedSequences.of(LENGTHS)
    whole = Decoder(config)
    front = Decoder(config, layers=range(1), last=False)
    middle = Decoder(config, layers=range(1, 2), first=False, last=False)
    end = Decoder(config, layers=range(2, 3), first=False)
    for part in (whole, front, middle, end):
        part.init_weights(seed=5)
    assert "model.layers.2.mlp.up_proj.weight" in end.state_dict()
    assert ("model.embed_tokens.weight" in end.state_dict()) == tied
    hidden = end(middle(front(ids, sequences), sequences), sequences)
    torch.testing.assert_close(end.logits(hidden), whole.logits(whole(ids, sequences)), atol=0, rtol=0)


def test_random_weights_depend_on_the_seed(tiny):
    first, second = Decoder(tiny.config()), Decoder(tiny.config())
    first.init_weights(seed=1)
    second.init_weights(seed=2)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, first.model.embed_tokens.weight)


def test_bf16_stays_bf16_and_close(tiny):
    ids, sequences = tokens(), PackedSequences.of(LENGTHS)
    model = Decoder(tiny.config())
    model.init_weights(seed=3)
    wide = model(ids, sequences)
    narrow = model.bfloat16()(ids, sequences)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() < 0.02 * wide.norm()
