"""How long a worker was silent."""

from controller.fleet.silence import Silence


def test_silence_grows_from_look_to_look_and_ends_with_a_word() -> None:
    silence = Silence(tick_s=0.25)
    seen = [silence.look(heard_s=0.0, now_s=0.25 * look) for look in range(1, 5)]
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert silence.look(heard_s=1.1, now_s=1.25) == 0.0
    assert silence.look(heard_s=1.1, now_s=1.5) == 0.25


def test_time_in_which_nobody_listened_is_not_taken_for_silence() -> None:
    silence = Silence(tick_s=0.25)
    silence.look(heard_s=0.0, now_s=0.0)
    assert silence.look(heard_s=0.0, now_s=60.0) == 0.5
