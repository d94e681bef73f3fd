from dsvlp.accounting.clock import Clock


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_is_booked_once_and_under_the_innermost_phase():
    time = Time()
    clock = Clock(devices=4, now=time)
    time.now += 3
    with clock.phase("train"):
        time.now += 10
        with clock.phase("save"):
            time.now += 2
        time.now += 1
    time.now += 5
    clock.tick()
    assert clock.seconds["startup"] == 3 + 5
    assert clock.seconds["train"] == 11
    assert clock.seconds["save"] == 2
    assert clock.total == time.now - 100
    assert clock.device_seconds == 4 * clock.total


def test_a_resumed_clock_goes_on_with_another_number_of_devices():
    time = Time()
    first = Clock(devices=4, now=time)
    time.now += 10
    state = first.state_dict()
    time.now = 0.0  # another host's monotonic clock
    second = Clock(devices=2, now=time)
    second.load_state_dict(state)
    time.now += 5
    second.tick()
    assert second.total == 15
    assert second.device_seconds == 4 * 10 + 2 * 5


def test_a_phase_that_fails_is_still_booked():
    time = Time()
    clock = Clock(devices=1, now=time)
    try:
        with clock.phase("validate"):
            time.now += 7
            raise ValueError
    except ValueError:
        pass
    assert clock.seconds["validate"] == 7
