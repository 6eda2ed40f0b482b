"""The stream of training samples: shuffled, endless, and the same wherever it is entered."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from phoenix_d2.data import sample_stream
from phoenix_d2.data.sample_stream import SampleStream, StreamSampler

SEEDS = ("view_seed", "sample_seed")


@pytest.fixture
def stream():
    return SampleStream([{"name": index} for index in range(5)], seed=3)


def names(stream, numbers):
    return [stream[number]["name"] for number in numbers]


def test_every_epoch_shows_every_sample_once_in_another_order(stream):
    epochs = [names(stream, range(start, start + 5)) for start in range(0, 50, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_sample_depends_on_seed_and_number_alone(stream):
    again = SampleStream([{"name": index} for index in range(5)], seed=3)
    other = SampleStream([{"name": index} for index in range(5)], seed=4)
    # asked for in another order, after others
    assert [again[number] for number in reversed(range(20))] == [stream[number] for number in reversed(range(20))]
    assert names(other, range(20)) != names(stream, range(20))


def test_seeds_never_repeat(stream):
    seeds = {tuple(np.random.SeedSequence(stream[n][key]).generate_state(2)) for n in range(50) for key in SEEDS}
    assert len(seeds) == 100


@pytest.mark.parametrize("num_views", [1, 3])
def test_views_come_again_and_samples_do_not(num_views):
    stream = SampleStream([{"name": index} for index in range(5)], seed=3, num_views=num_views)
    rounds = [[stream[number] for number in range(start, start + 5 * num_views)] for start in (0, 5 * num_views)]
    views, again = ({(s["name"], s["view_seed"]) for s in samples} for samples in rounds)
    assert len(views) == 5 * num_views and again == views
    assert len({s["sample_seed"] for samples in rounds for s in samples}) == 10 * num_views


def test_more_views_keep_those_that_there_were():
    few, more = (SampleStream([{"name": index} for index in range(5)], seed=3, num_views=n) for n in (2, 4))
    assert [few[number] for number in range(10)] == [more[number] for number in range(10)]


def test_a_negative_number_of_views_is_refused():
    with pytest.raises(ValueError, match="num_views is -1"):
        SampleStream([{}], seed=0, num_views=-1)


def test_samples_are_copies(stream):
    stream[0]["name"] = "changed"
    assert "changed" not in names(stream, range(5))


def test_processes_share_the_numbers_among_them(monkeypatch):
    monkeypatch.setattr(sample_stream.comm, "get_world_size", lambda: 3)
    read = []
    for rank in range(3):
        monkeypatch.setattr(sample_stream.comm, "get_rank", lambda rank=rank: rank)
        sampler = StreamSampler()
        sampler.start = 6
        read += islice(sampler, 4)
    assert sorted(read) == list(range(6, 18))


def test_the_start_may_be_set_until_iteration_begins():
    sampler = StreamSampler()
    assert list(islice(sampler, 3)) == [0, 1, 2]
    iterator = iter(sampler)
    sampler.start = 40
    assert list(islice(iterator, 3)) == [40, 41, 42]
