"""Which documents make up a batch, and how they are dealt: pure functions, the same on every machine and at every layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsft.core.planning.order import SampleOrder, deal, deal_in_order, deal_to_ranks, micro_batches_per_rank

documents = st.integers(1, 300)
global_batches = st.integers(1, 70)
lengths = st.lists(st.integers(0, 2048), min_size=1, max_size=80)


@given(n=documents, global_batch=global_batches, seed=st.integers(0, 2**40), legacy=st.booleans())
def test_every_epoch_is_a_permutation(n, global_batch, seed, legacy):
    order = SampleOrder(n, global_batch, seed % 2**32 if legacy else seed, numpy_legacy=legacy)
    batches = -(-3 * n // global_batch)
    seen = np.concatenate([order.batch(iteration) for iteration in range(batches)])
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ():
    order = SampleOrder(1000, 1000, 7)
    assert not np.array_equal(order.batch(0), order.batch(1))
    assert not np.array_equal(order.batch(0), SampleOrder(1000, 1000, 8).batch(0))


def test_a_batch_needs_none_before_it():
    late = SampleOrder(50, 8, 3).batch(40)
    order = SampleOrder(50, 8, 3)
    assert np.array_equal([order.batch(iteration) for iteration in range(41)][40], late)


def test_the_order_is_that_of_earlier_versions():
    """A run that goes on must see the documents that it would have seen."""
    assert SampleOrder(10, 10, 1234).batch(0).tolist() == [4, 1, 6, 8, 5, 3, 7, 2, 9, 0]
    expected = np.random.RandomState(1234)
    legacy = SampleOrder(10, 10, 1234, numpy_legacy=True)
    assert [legacy.batch(k).tolist() for k in range(3)] == [expected.permutation(10).tolist() for _ in range(3)]


@given(lengths=lengths, dp=st.integers(1, 8), micro_batch=st.integers(1, 16))
def test_ranks_share_all_documents(lengths, dp, micro_batch):
    ranks = deal_to_ranks(lengths, dp=dp, micro_batch=micro_batch)
    dealt = [i for rank in ranks for part in rank for i in part]
    assert sorted(dealt) == list(range(len(lengths)))
    assert {len(rank) for rank in ranks} == {micro_batches_per_rank(len(lengths), dp=dp, micro_batch=micro_batch)}
    if len(lengths) >= dp:
        assert all(part for rank in ranks for part in rank)


@given(lengths=lengths, num_bins=st.integers(1, 16))
def test_bins_are_balanced(lengths, num_bins):
    """Each goes to the lightest bin, so the heaviest is above the lightest by one document at most."""
    loads = [sum(max(1, lengths[i]) for i in part) for part in deal(lengths, num_bins=num_bins)]
    assert max(loads) - min(loads) <= max(1, *lengths)


@given(lengths=lengths, seed=st.integers(0, 100))
def test_dealing_does_not_depend_on_the_kind_of_sequence(lengths, seed):
    assert deal(lengths, num_bins=3) == deal(np.array(lengths), num_bins=3)


@pytest.mark.parametrize(("documents", "dp", "micro", "count"), [(64, 1, 4, 16), (64, 8, 16, 1), (64, 3, 2, 11), (3, 4, 2, 1)])
def test_number_of_micro_batches(documents, dp, micro, count):
    assert micro_batches_per_rank(documents, dp=dp, micro_batch=micro) == count


def test_dealing_in_order():
    assert deal_in_order(8, dp=2, micro_batch=2) == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
