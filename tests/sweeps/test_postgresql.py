"""A study in PostgreSQL: processes of several machines, without a disk that they share."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from harness.errors import StorageError
from harness.sweeps import store
from harness.sweeps.plan import Plan
from harness.sweeps.study import Study
from tests.sweeps import crews
from tests.sweeps.crews import Labour
from tests.sweeps.launches import assert_whole, command, launch, launched, saved
from tests.sweeps.postgres import Postgres
from tests.test_launch import wait_for

Join = Callable[[Plan, Path], Study]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def join() -> Iterator[Join]:
    """As another machine does, with a folder of its own."""
    with ExitStack() as stack:

        def join(of: Plan, folder: Path) -> Study:
            study = Study(of, folder)
            stack.enter_context(closing(study.store))
            return study

        yield join


def plan(url: str, *own: str) -> Plan:
    return crews.plan(f"storage='{url}'", "heartbeat_seconds=1", *own)


def test_four_machines_share_a_study_and_two_die(postgres: Postgres, join: Join, tmp_path: Path) -> None:
    """F32, F34: the total is exact, and what the dead left is taken up under its number when its heartbeats stop."""
    of_all = plan(postgres.database("four"), "trials=8", "confirm={top: 2, seeds: [100, 101]}")
    deadly = frozenset({("search", 3), ("confirm", 2)})
    folders = [tmp_path / name for name in "abcd"]
    assert crews.work(*(Labour(of_all, folder, deadly) for folder in folders)) == [-9, -9, 0, 0]

    study = join(of_all, tmp_path / "e")
    taken = [one for folder in folders for one in crews.taken(folder)]
    for stage, total, twice in (("search", 8, [3]), ("baseline", 8, []), ("confirm", 8, [2])):
        records = study.records(stage)
        assert [one.number for one in records] == [*range(total)]
        assert [(one.state, one.run) for one in records] == [("complete", f"{stage}-{n}") for n in range(total)]
        claims = sorted(one["number"] for one in taken if one["stage"] == stage)
        assert claims == sorted([*range(total), *twice])
    assert sorted(one["attempt"] for one in taken)[-3:] == [1, 2, 2]
    assert {one["number"]: one["chosen"] for one in taken if one["stage"] == "search"} == {
        one.number: one.params for one in study.records("search")
    }


def test_a_living_process_keeps_its_trial(postgres: Postgres, join: Join, tmp_path: Path) -> None:
    """However long it takes: its heartbeats go on."""
    mine = join(plan(postgres.database("alive"), "trials=1"), tmp_path / "a")
    other = join(mine.plan, tmp_path / "b")
    claim = mine.claim("search")
    assert claim
    time.sleep(4.5)
    assert other.claim("search") is None
    assert other.is_open("search")
    mine.finish(claim, "complete", run="r", seconds=1.0, values=[0.5])
    assert not other.is_open("search")


def test_a_process_that_was_out_of_reach_leaves_its_trial_to_the_one_that_took_it_up(
    postgres: Postgres, join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = join(plan(postgres.database("partition"), "trials=1"), tmp_path / "a")
    other = join(mine.plan, tmp_path / "b")
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)  # no heartbeat after the first
    claim = mine.claim("search")
    monkeypatch.undo()
    assert claim
    assert mine.report(claim, 0.1, 1) == ""
    time.sleep(3.5)
    again = other.claim("search")
    assert again
    assert (again.number, again.attempt, again.chosen) == (claim.number, 2, claim.chosen)
    assert mine.report(claim, 0.2, 2) == "another process took it up"
    mine.put_back(claim, 1.0)
    mine.finish(claim, "failed", run="r", seconds=1.0, reason="late")
    assert other.records("search")[0].state == "running"
    assert other.report(again, 0.3, 2) == ""
    other.finish(again, "complete", run="r", seconds=1.0, values=[0.5])
    mine.finish(claim, "failed", run="r", seconds=1.0, reason="late")
    (record,) = other.records("search")
    assert (record.state, record.values, record.reason) == ("complete", [0.5], "")
    assert record.intermediate == {1: 0.1, 2: 0.3}


def test_another_machine_finishes_what_a_dead_one_began(postgres: Postgres, tiny: list[str], tmp_path: Path) -> None:
    """F32: without a shared disk the trial begins anew, in the MLflow run that it has."""
    here, there = tmp_path / "here", tmp_path / "there"
    shared = [f"storage='{postgres.database('machines')}'", "heartbeat_seconds=1"]
    shared.append(f"tracking.uri=sqlite:///{there / 'mlflow.db'}")
    there.mkdir()
    with launched(command(tiny, here, *shared), here) as study:
        wait_for(lambda: saved(here, "s000-small"))
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    done = launch(command(tiny, there, *shared))
    assert done.returncode == 0, done.stderr
    assert "another process leads" not in done.stdout
    assert_whole(there)


def test_one_process_leads_and_its_death_makes_room(postgres: Postgres, join: Join, tmp_path: Path) -> None:
    mine = join(plan(postgres.database("lead"), "trials=1"), tmp_path / "a" / "studies" / "x")
    other = join(mine.plan, tmp_path / "b" / "studies" / "x")
    with mine.store.leading(tmp_path / "a") as first, other.store.leading(tmp_path / "b") as second:
        assert (first, second) == (True, False)
    with other.store.leading(tmp_path / "b") as first, mine.store.leading(tmp_path / "a") as second:
        assert (first, second) == (True, False)


def test_a_lock_of_a_machine_that_vanished_is_missed_within_a_minute(
    postgres: Postgres, join: Join, tmp_path: Path
) -> None:
    """The server's end of the connection wakes up after seconds, not after the usual hours."""
    postgres.database("far")
    study = join(plan(f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/far", "trials=1"), tmp_path)
    study.store.close()

    def wakes() -> list[float]:
        """Seconds until the keepalive timer (02) of each of the server's established (01) connections goes off."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [row[5].split(":") for row in rows if row[1].endswith(f":{postgres.port:04X}") and row[3] == "01"]
        return [int(left, 16) / os.sysconf("SC_CLK_TCK") for timer, left in ours if timer == "02"]

    with study.store.leading(tmp_path):
        wait_for(wakes)
        assert max(wakes()) <= 30


def test_a_server_that_is_away_for_a_while_costs_nothing(
    join: Join, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away a trial goes on; its end is told when it is back. Away for longer: exit 5, one sentence."""
    server = Postgres()
    try:
        study = join(plan(server.url(password="s3cr:t%40x"), "trials=2"), tmp_path)
        claim = study.claim("search")
        assert claim
        server.stop()
        assert study.report(claim, 0.5, 1) == ""
        back = threading.Timer(1.5, server.start)
        back.start()
        study.finish(claim, "complete", run="r", seconds=1.0, values=[0.5])
        back.join()
        assert [one.state for one in study.records("search")] == ["complete"]
        assert study.claim("search")
        server.stop()
        monkeypatch.setattr(store, "_PATIENCE", (0.01,))
        with pytest.raises(StorageError) as caught:
            study.claim("search")
        assert "s3cr" not in str(caught.value)
        assert "t%40x" not in str(caught.value)
        assert caught.value.exit_code == 5
    finally:
        server.remove()
