"""How many places there are, by how busy the machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantum_orchestrator.blocks import machine
from quantum_orchestrator.blocks.pressure import Sample, Sampler
from quantum_orchestrator.flows import places, plan
from quantum_orchestrator.flows.instruction_set import load
from quantum_orchestrator.flows.places import Places
from quantum_orchestrator.flows.pressure import REST, Pressure

IDLE = Sample(busy=0.3)
FULL = Sample(busy=0.9)
CROWDED = Sample(busy=1.0)


def after(pressure: Pressure, *samples: Sample) -> list[int]:
    return [pressure.observe(sample) for sample in samples]


def test_places_are_added_one_by_one_up_to_four_a_processor() -> None:
    assert after(Pressure(4, processors=2), *[IDLE] * 6) == [5, 6, 7, 8, 8, 8]


def test_a_busy_machine_gets_no_more() -> None:
    assert after(Pressure(4, processors=2), FULL, FULL) == [4, 4]


def test_a_process_that_keeps_a_processor_busy_itself_gets_no_more() -> None:
    assert after(Pressure(4, processors=8), Sample(busy=0.2, own=0.95)) == [4]


@pytest.mark.parametrize("stall", [{"memory_stalls": 0.3}, {"disk_stalls": 0.9}, {"free_memory": 0.01}])
def test_stalls_halve_them_down_to_one_each_time_after_a_rest(stall: dict[str, float]) -> None:
    pressure = Pressure(4, processors=2)
    stalled = Sample(**stall)
    assert after(pressure, stalled, *[stalled] * REST) == [2] * (REST + 1)
    assert after(pressure, stalled, *[stalled] * REST) == [1] * (REST + 1)
    assert after(pressure, stalled, IDLE) == [1, 2]


def test_crowded_processors_take_back_only_what_was_added() -> None:
    pressure = Pressure(4, processors=2)
    after(pressure, *[IDLE] * 4)
    assert after(pressure, CROWDED, *[CROWDED] * REST, CROWDED) == [6] * (REST + 1) + [4]
    assert after(pressure, *[CROWDED] * 20)[-1] == 4


def test_crowded_processors_do_not_add_to_what_stalls_have_taken() -> None:
    pressure = Pressure(8, processors=2)
    after(pressure, Sample(memory_stalls=1.0), *[CROWDED] * REST)
    assert after(pressure, CROWDED) == [4]


def test_a_sample_says_what_was_since_the_last_one() -> None:
    sample = Sampler()
    sum(range(1_000_000))
    found = sample()
    assert 0 < found.busy <= 1
    assert found.own > 0
    assert 0 < found.free_memory <= 1
    assert 0 <= found.memory_stalls <= 1


def test_stalls_are_the_kernels_own_sums(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("some avg10=0.00 total=1000000\nfull avg10=0.00 total=7\n")
    sample = Sampler(tmp_path)
    (tmp_path / "memory").write_text("some avg10=0.00 total=999000000\nfull avg10=0.00 total=7\n")
    found = sample()
    assert (found.memory_stalls, found.disk_stalls) == (1.0, 0.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(machine, "processors", lambda: 2)
    monkeypatch.setattr(places, "_sampler", lambda: lambda: IDLE)
    monkeypatch.setattr(places.time, "monotonic", lambda: now[0])
    return now


def test_the_machine_is_looked_at_four_times_a_second_while_steps_are_short_of_places(clock: list[float]) -> None:
    found = Places(4, adapts=True)
    numbers = []
    for _ in range(9):
        assert found.adapt(short=lambda: True) == pytest.approx(0.125, abs=0.13)
        numbers.append(found.now)
        clock[0] += 0.125
    assert numbers == [4, 4, 5, 5, 6, 6, 7, 7, 8]


def test_what_was_before_a_pause_does_not_count(clock: list[float]) -> None:
    found = Places(4, adapts=True)
    found.adapt(short=lambda: True)
    assert found.adapt(short=lambda: False) is None
    clock[0] += 10
    found.adapt(short=lambda: True)
    assert found.now == 4


def test_a_fixed_number_stays_and_every_step_takes_a_place(clock: list[float]) -> None:
    document = {"name": "x", "instructions": [{"id": "w", "op": "wait", "with": {"seconds": 1}}]}
    (wait,) = plan.build(load(json.dumps(document).encode()), {}).steps
    assert Places(4).adapt(short=lambda: True) is None
    assert not Places(4).only_waits(wait)
    assert Places(4, adapts=True).only_waits(wait)
