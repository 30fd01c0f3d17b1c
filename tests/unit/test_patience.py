"""How long the loop leaves a step open: never longer than it would wait for the device."""

from radixlm.engine.patience import Patience


def test_nothing_is_risked_for_steps_of_a_size_not_met_yet():
    patience = Patience()
    patience.learn(100, 1.0)
    assert patience.of(100) == patience.of(64) == patience.of(127) == 0.75
    assert patience.of(63) == patience.of(128) == 0.0


def test_a_shorter_waiting_is_believed_at_once_and_a_longer_one_after_several_steps():
    patience = Patience()
    for waited in (4.0, 2.0):
        patience.learn(50, waited)
    assert patience.of(50) == 1.5
    patience.learn(50, 10.0)
    assert patience.of(50) == 0.75 * 3.0
    for _ in range(100):
        patience.learn(50, 10.0)
    assert 7.4 < patience.of(50) <= 7.5
