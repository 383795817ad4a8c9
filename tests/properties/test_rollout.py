"""Whatever is offered, reported and done by hand in whatever order: one canary at a time, what was withdrawn is never
tried again, and no device speaks for others."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from everlearn.spec.rollout import Canary, DeviceHealth, Rollout
from everlearn_server.engine.device_reports import (
    GIVEN_UP,
    MAX_DEVICES,
    MAX_VERSIONS,
    SILENT_S,
    Cohort,
    DeviceReports,
    Report,
    Use,
)
from everlearn_server.engine.rollout import KEPT, RolloutState, unwell

DECLARED = Rollout(canary=Canary(selector={"site": "lab"}, min_devices=2, min_predictions=10), watch_hours=1)
WELL = Cohort(devices=2, took=2, predictions=10)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["learn", "offer", "well", "bad", "late", "hand", "abort", "restart"]), st.integers(0, 3)
    ),
    max_size=60,
)


class Life:
    """A model's versions, as a server moves them."""

    def __init__(self) -> None:
        self.state = RolloutState()
        self.newest = self.stable = 1
        self.time_s = 0.0
        self.tried: list[int] = []

    def step(self, name: str, which: int) -> None:
        self.time_s += 60
        getattr(self, name)(which)

    def learn(self, count: int) -> None:
        self.newest += count

    def offer(self, _: int) -> None:
        if self.newest > self.stable:
            before = self.state.canary
            self.state = self.state.offered(self.newest, now_s=self.time_s)
            if self.state.canary != before:
                assert not before, "one at a time"
                self.tried.append(self.state.canary)

    def well(self, _: int) -> None:
        if self.state.canary:
            verdict = self.state.judged(DECLARED, WELL, Cohort(), now_s=self.time_s)
            assert verdict.kind == "promote"
            canary, before = self.state.canary, self.stable
            self.state, self.stable = self.state.promoted(before=before, now_s=self.time_s), canary

    def bad(self, _: int) -> None:
        if self.state.canary:
            verdict = self.state.judged(DECLARED, Cohort(took=1, gave_up=1), Cohort(), now_s=self.time_s)
            assert verdict.kind == "withdraw"
            canary = self.state.canary
            self.state = self.state.withdrawn_canary(verdict.reason, newest=self.newest, now_s=self.time_s)
            assert self.state.is_withdrawn(canary)

    def late(self, _: int) -> None:
        if self.state.watch is not None:
            assert self.state.watch.number == self.stable
            before = self.state.watch.before
            verdict = self.state.watched(DECLARED, Cohort(took=1, gave_up=1), Cohort(), now_s=self.time_s)
            if verdict.kind == "withdraw":
                self.state = self.state.gone_back("bad", newest=self.newest, now_s=self.time_s)
                assert self.state.is_withdrawn(self.stable)
                self.stable = before
            else:
                assert self.time_s - self.state.watch.since_s >= 3600
            assert self.state.watch is None or verdict.kind == "promote"

    def hand(self, back: int) -> None:
        before, self.stable = self.stable, max(1, self.newest - back)
        self.state = self.state.moved_by_hand(self.stable, before=before, now_s=self.time_s)
        assert not self.state.canary
        assert not self.state.is_withdrawn(self.stable)

    def abort(self, _: int) -> None:
        if self.state.canary:
            self.state = self.state.withdrawn_canary("by hand", newest=self.newest, now_s=self.time_s)

    def restart(self, _: int) -> None:
        stored = RolloutState.from_json(self.state.to_json())
        assert stored == self.state
        self.state = stored


@given(STEPS)
def test_one_version_is_tried_at_a_time_and_none_twice(steps: list[tuple[str, int]]) -> None:
    life = Life()
    for name, which in steps:
        life.step(name, which)
        assert not life.state.is_withdrawn(life.state.canary)
        assert life.state.canary == 0 or life.state.canary > life.stable or name == "hand"
        assert len(life.state.withdrawn) <= KEPT
    assert life.tried == sorted(set(life.tried))


def test_a_control_that_forgets_what_was_withdrawn_tries_it_again() -> None:
    life = Life()
    for name in ("learn", "offer", "bad"):
        life.step(name, 1)
    life.offer(0)
    assert life.tried == [2]
    life.state = RolloutState()  # as a server that has lost its verdict
    life.offer(0)
    assert life.tried == [2, 2]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000), st.booleans()), max_size=40))
def test_reports_that_come_twice_late_or_after_a_restart_never_count_for_more_than_was_done(
    told: list[tuple[int, int, bool]],
) -> None:
    """Boots follow each other, each counts up; messages of an earlier one arrive whenever they like."""
    reports, done = DeviceReports(), dict[int, int]()
    boot = 0
    for step, (new_boot, more, again) in enumerate(told):
        boot += new_boot == 0
        done[boot] = done.get(boot, 0) + more
        report = Report(labels={}, boot=f"{boot:08x}", running=7, uses={7: Use(predictions=done[boot])})
        for _ in range(1 + again):
            reports.take("a", report, now_s=float(step), asked={7})
        late = Report(labels={}, boot=f"{max(0, boot - 1):08x}", running=7, uses={7: Use(predictions=1)})
        reports.take("a", late, now_s=float(step), asked={7})
        found = reports.find("a")
        assert found is not None
        use = found.use(7)
        assert use is not None
        assert use.predictions <= max(1, sum(done.values())) + 1
    assert reports.cohort(7, most_of_one=5).predictions <= 5


@given(st.dictionaries(st.integers(1, 10**6), st.integers(0, 10**12), max_size=30))
def test_what_is_kept_of_one_device_is_bounded(uses: Mapping[int, int]) -> None:
    reports = DeviceReports()
    for version, count in uses.items():
        use = Use(predictions=count, labels={f"{version}-{n}": 1 for n in range(32)})
        given_up = {version: "SELF_TEST"}
        report = Report(labels={}, boot="0" * 8, running=version, uses={version: use}, given_up=given_up)
        reports.take("a", report, now_s=0.0, asked=set())
    found = reports.find("a")
    if found is not None:
        assert len(found.now) <= MAX_VERSIONS
        assert len(found.given_up) <= GIVEN_UP


def test_a_newcomer_takes_no_place_of_a_device_that_was_heard_of_lately() -> None:
    reports = DeviceReports()
    report = Report(labels={}, boot="0" * 8)
    for index in range(MAX_DEVICES):
        assert reports.take(f"d{index}", report, now_s=0.0, asked=())
    assert not reports.take("newcomer", report, now_s=1.0, asked=())
    assert reports.take("d0", report, now_s=2.0, asked=())
    assert reports.take("newcomer", report, now_s=SILENT_S + 1, asked=())
    assert (len(reports), reports.find("d1"), reports.find("d0") is None) == (MAX_DEVICES, None, False)


def test_few_predictions_decide_nothing_but_devices_that_give_up_do() -> None:
    state = RolloutState(canary=2)
    few = Cohort(devices=1, took=1, predictions=5, failed_share=1.0)
    assert state.judged(DECLARED, few, Cohort(), now_s=0.0).kind == "wait"
    enough = Cohort(devices=2, took=2, predictions=10, failed_share=1.0)
    assert state.judged(DECLARED, enough, Cohort(), now_s=0.0).kind == "withdraw"
    assert state.judged(DECLARED, Cohort(took=3, gave_up=1), Cohort(), now_s=0.0).kind == "withdraw"
    patient = Rollout(canary=DECLARED.canary, health=DeviceHealth(max_failures=1))
    assert state.judged(patient, Cohort(took=3, gave_up=1), Cohort(), now_s=0.0).kind == "wait"


def test_a_rise_is_over_what_the_version_before_it_showed() -> None:
    health = DeviceHealth(max_label_shift=0.3)
    unsure = Cohort(predictions=100, unsure_share=0.3)
    assert "30.0% of its samples got no label" in unwell(health, unsure, Cohort(unsure_share=0.1), rates=True)
    assert not unwell(health, unsure, Cohort(unsure_share=0.25), rates=True)
    cats = Cohort(predictions=100, labels={"cat": 90, "dog": 10})
    assert "its labels are" in unwell(health, cats, Cohort(labels={"cat": 10, "dog": 90}), rates=True)
    assert not unwell(health, cats, Cohort(labels={"cat": 800, "dog": 100}), rates=True)
    assert not unwell(DeviceHealth(), cats, Cohort(labels={"cat": 10, "dog": 90}), rates=True)


def test_a_canary_without_a_verdict_gives_way_in_time() -> None:
    declared = Rollout(canary=Canary(selector={"site": "lab"}, max_hours=1.0))
    state = RolloutState(canary=2, newer_than=2)
    assert state.judged(declared, Cohort(), Cohort(), now_s=3599.0).kind == "wait"
    verdict = state.judged(declared, Cohort(), Cohort(), now_s=3600.0)
    assert verdict.kind == "give_way"
    after = state.gave_way().offered(3, now_s=3601.0)
    assert (after.canary, after.withdrawn) == (3, ())
