"""A sequence waits until those before it leave it a place."""

from loadwise.engines.openvino.turns import Turns


def test_those_who_find_a_place_did_not_wait():
    turns = Turns(2)
    turns.joined(1, 5.0)
    turns.joined(2, 5.0)
    assert (turns.waited_s(1), turns.waited_s(2)) == (0.0, 0.0)


def test_the_first_to_come_is_the_first_to_get_a_place():
    turns = Turns(1)
    for key in (1, 2, 3):
        turns.joined(key, float(key))
    assert turns.waited_s(2) is None
    turns.left(1, 10.0)
    assert (turns.waited_s(2), turns.waited_s(3)) == (8.0, None)
    turns.left(2, 12.0)
    assert turns.waited_s(3) == 9.0


def test_who_gives_up_waiting_frees_no_place():
    turns = Turns(1)
    for key in (1, 2, 3):
        turns.joined(key, 0.0)
    turns.left(2, 1.0)
    assert turns.waited_s(3) is None
    turns.left(1, 2.0)
    assert turns.waited_s(3) == 2.0
    turns.left(1, 3.0)
    turns.clear()
    turns.joined(4, 4.0)
    assert turns.waited_s(4) == 0.0
