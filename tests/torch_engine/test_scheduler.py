"""Who runs next, tested without torch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.errors import ConfigurationError, RequestError
from loadwise.torch_engine.scheduler import Limits, Move, Plan, Scheduler
from loadwise.torch_engine.sequence import Finish, Sampling, Sequence


def limits(places: int = 2, waiting: int = 4, prefill_tokens: int = 8, **changes: int) -> Limits:
    return Limits(
        places=places, waiting=waiting, prefill_tokens=prefill_tokens, **{"context_tokens": 64} | changes
    )


def sequence(number: int, prompt: int = 3) -> Sequence:
    return Sequence(sequence_id=number, prompt=(1,) * prompt, sampling=Sampling(max_tokens=4), arrived_s=0.0)


def carry_out(plan: Plan) -> None:
    for chunk in plan.chunks:
        chunk.sequence.computed += chunk.length
        if chunk.last:
            chunk.sequence.output.append(5)
    for decoding in plan.decodes:
        decoding.computed += 1
        decoding.output.append(5)


def test_first_come_is_first_served() -> None:
    scheduler = Scheduler(limits(places=2))
    sequences = [sequence(number) for number in range(4)]
    for each in sequences:
        scheduler.add(each)
    scheduler.schedule()
    assert scheduler.running == sequences[:2]
    scheduler.finish(sequences[0], Finish.STOP)
    scheduler.schedule()
    assert scheduler.running == sequences[1:3]
    assert list(scheduler.waiting) == sequences[3:]


def test_queue_is_bounded_and_the_refusal_says_when_to_come_back() -> None:
    scheduler = Scheduler(limits(places=1, waiting=1))
    for number in range(2):
        scheduler.add(sequence(number))
    with pytest.raises(RequestError, match="queue_limit 1") as refused:
        scheduler.add(sequence(2))
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
    scheduler.schedule()
    with pytest.raises(RequestError):
        scheduler.add(sequence(3))


@pytest.mark.parametrize(("tokens", "message"), [(0, "1 to 63"), (64, "Shorten")])
def test_prompt_that_cannot_fit_is_refused_by_its_length(tokens: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        Scheduler(limits()).add(sequence(1, tokens))
    assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_token_id_outside_the_vocabulary_is_refused() -> None:
    odd = Sequence(sequence_id=1, prompt=(1, 99), sampling=Sampling(max_tokens=1), arrived_s=0.0)
    with pytest.raises(RequestError, match=r"0\.\.49"):
        Scheduler(limits(vocabulary=50)).add(odd)


def test_long_prompt_is_read_in_chunks_beside_those_who_decode() -> None:
    scheduler = Scheduler(limits(places=2, prefill_tokens=4))
    short, long = sequence(1, 2), sequence(2, 9)
    scheduler.add(short)
    scheduler.add(long)
    seen = []
    for _ in range(4):
        plan = scheduler.schedule()
        seen.append(([(c.sequence, c.start, c.length) for c in plan.chunks], list(plan.decodes)))
        carry_out(plan)
    assert seen == [
        ([(short, 0, 2), (long, 0, 2)], []),
        ([(long, 2, 4)], [short]),
        ([(long, 6, 3)], [short]),
        ([], [short, long]),
    ]


def test_place_left_empty_is_taken_by_the_highest() -> None:
    scheduler = Scheduler(limits(places=3, prefill_tokens=64))
    sequences = [sequence(number, 3) for number in range(3)]
    for each in sequences:
        scheduler.add(each)
    carry_out(scheduler.schedule())
    scheduler.finish(sequences[0], Finish.LENGTH)
    plan = scheduler.schedule()
    assert plan.moves == [Move(2, 0, 3)]
    assert [(each.sequence_id, each.place) for each in plan.decodes] == [(2, 0), (1, 1)]


def test_sequence_ends_once() -> None:
    scheduler = Scheduler(limits())
    waiting = sequence(1)
    scheduler.add(waiting)
    scheduler.finish(waiting, Finish.CANCELLED)
    scheduler.finish(waiting, Finish.STOP)
    assert waiting.finish is Finish.CANCELLED
    assert not scheduler.schedule()


@pytest.mark.parametrize(
    "wrong", [{"places": 0}, {"prefill_tokens": 0}, {"waiting": -1}, {"context_tokens": 0}]
)
def test_limits_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        limits(**wrong)


@settings(max_examples=60, deadline=None)
@given(
    places=st.integers(1, 4),
    prefill=st.integers(1, 12),
    events=st.lists(st.tuples(st.sampled_from(["add", "end", "step"]), st.integers(0, 20)), max_size=60),
)
def test_places_are_dense_unique_and_never_lost(
    places: int, prefill: int, events: list[tuple[str, int]]
) -> None:
    scheduler = Scheduler(limits(places=places, waiting=100, prefill_tokens=prefill))
    for number, (event, value) in enumerate(events):
        if event == "add":
            scheduler.add(sequence(number, 1 + value))
        elif event == "end" and scheduler.running:
            scheduler.finish(scheduler.running[value % len(scheduler.running)], Finish.STOP)
        plan = scheduler.schedule()
        assert sorted(each.place or 0 for each in scheduler.running) == list(range(len(scheduler.running)))
        assert len(scheduler.running) == places or not scheduler.waiting
        assert sum(chunk.length for chunk in plan.chunks) <= prefill
        assert all(each.prefilled for each in plan.decodes)
        carry_out(plan)
