"""Which documents make up a batch, and how they are dealt: pure functions, the same on every machine and at every layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsft.core.planning.order import (
    FileShare,
    SampleOrder,
    deal,
    deal_in_order,
    deal_to_ranks,
    micro_batches_per_rank,
    split_by_hash,
)

documents = st.integers(1, 300)
global_batches = st.integers(1, 70)
MIXED = [[6, 0, 7, 7, 8, 2, 6, 1], [8, 4, 3, 6, 6, 5, 7, 8], [4, 8, 7, 2, 6, 5, 7, 8]]
HELD_OUT = [0, 3, 7, 10, 14, 15, 17, 20, 27, 30, 39]
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


file_shares = st.lists(st.builds(FileShare, st.integers(1, 40), st.integers(1, 90)), min_size=1, max_size=4).map(tuple)


@given(mixture=file_shares, global_batch=global_batches, seed=st.integers(0, 2**63 - 1))
def test_a_mixture_takes_its_share_of_each_file_and_repeats_nothing_early(mixture, global_batch, seed):
    order = SampleOrder(sum(share.documents for share in mixture), global_batch, seed, mixture=mixture)
    n, epochs = order.epoch_documents, 4
    assert n == sum(share.taken for share in mixture)
    seen = np.concatenate([order.batch(iteration) for iteration in range(-(-epochs * n // global_batch))])
    first = 0
    for documents, taken in mixture:
        times = np.zeros(documents, int)
        for epoch in range(epochs):
            here = seen[epoch * n : (epoch + 1) * n]
            here = here[(here >= first) & (here < first + documents)] - first
            assert len(here) == taken
            np.add.at(times, here, 1)
            assert times.max() - times.min() <= 1, "one is seen again before all have been"
        first += documents
    assert seen.min() >= 0
    assert seen.max() < order.num_documents


@given(mixture=file_shares, global_batch=global_batches, iteration=st.integers(0, 60))
def test_a_batch_of_a_mixture_needs_none_before_it(mixture, global_batch, iteration):
    def order():
        return SampleOrder(sum(share.documents for share in mixture), global_batch, 3, mixture=mixture)

    alone = order().batch(iteration)
    straight = order()
    assert np.array_equal([straight.batch(number) for number in range(iteration + 1)][-1], alone)


def test_the_order_of_a_mixture_is_that_of_earlier_versions():
    order = SampleOrder(9, 8, 1234, mixture=(FileShare(6, 3), FileShare(3, 5)))
    assert [order.batch(k).tolist() for k in range(3)] == MIXED
    epochs = [order.batch(k) for k in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6


@given(hashes=st.lists(st.integers(0, 2**64 - 1), max_size=60), others=st.lists(st.integers(0, 2**64 - 1), max_size=60))
def test_a_hash_is_on_the_same_side_whatever_is_beside_it(hashes, others):
    def validated(values: list[int], share: float = 0.3) -> set[int]:
        train, val = split_by_hash(np.array(values, np.uint64), share)
        assert sorted([*train, *val]) == list(range(len(values)))
        chosen = {values[place] for place in val}
        assert not chosen & {values[place] for place in train}, "equal ones are on one side"
        return chosen

    alone = validated(hashes)
    together = validated([*others, *reversed(hashes)])
    assert alone == together & set(hashes)
    assert alone <= validated(hashes, 0.5), "a larger share keeps what a smaller one has"


def test_the_split_by_hash_is_that_of_earlier_versions_and_near_its_share():
    assert split_by_hash(np.arange(40, dtype=np.uint64), 0.2)[1].tolist() == HELD_OUT
    for share in (0.001, 0.05, 0.5):
        val = split_by_hash(np.arange(200_000, dtype=np.uint64), share)[1]
        assert abs(len(val) - share * 200_000) < 5 * (share * 200_000) ** 0.5
