"""A tape in a bucket that fails now and then, and back again."""

import dataclasses
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.config import read
from dr_jax.base.metrics import Metrics
from dr_jax.train import tape_mirror
from dr_jax.train.checkpoint import Checkpoints
from dr_jax.train.loop import train
from dr_jax.train.mirror import Mirror, Shelf
from dr_jax.train.settings import Settings
from dr_jax.train.tape_mirror import TapeMirror, bring_back, copies
from dr_jax.web.tape.archive import stats
from dr_jax.web.tape.entry import Entry, TapeSettings

pytest.importorskip("gcp_storage_emulator")
pytest.importorskip("google.cloud.storage")

from tests.train.bucket import Bucket
from tests.train.drill import ROOT, SMALL

# google-cloud-storage leaves the connection of a download that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


def tape(path: Path) -> TapeSettings:
    return TapeSettings(mode="record", path=str(path), busy_s=0.0)


def write(settings: TapeSettings, *texts: str, at: float | None = None) -> None:
    """Remember pages, each under the first word of its text."""
    with tape_mirror._opened(settings) as file:
        for text in texts:
            file.insert("fetch", text.split()[0], Entry({"of": text}, text.encode()), at=at)


def held(settings: TapeSettings) -> dict[str, str]:
    with tape_mirror._opened(settings) as file:
        keys = [key for (key,) in file.base.execute("select key from entries")]
        found = {key: file.select("fetch", key) for key in keys}
        return {key: entry.body.decode() for key, entry in found.items() if entry is not None}


def copied(shelf: Shelf, settings: TapeSettings, index: int = 0) -> dict[str, float]:
    """Copy once, and return what was counted."""
    metrics = Metrics()
    TapeMirror(shelf, settings, metrics, index=index, every_s=60).close(30)
    return metrics.drain()


def test_what_is_remembered_comes_back_through_failures_the_younger_of_two(bucket: Bucket, tmp_path: Path) -> None:
    bucket.share = 0.1
    shelf, here = Shelf("gs://runs/a"), tape(tmp_path / "here")
    for number in range(35):
        write(here, f"page-{number} as it was", "news of today" if number else "news of yesterday")
        copied(shelf, here)
    there = tape(tmp_path / "there")
    assert bring_back(shelf, there) == 36
    assert held(there) == held(here)
    assert held(there)["news"] == "news of today"
    assert bucket.answered[503] > 2
    assert bring_back(shelf, there) == 0


def test_a_resume_copies_and_brings_back_only_what_is_new(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, here = Shelf("gs://runs/b"), tape(tmp_path / "here")
    write(here, "a 1", "b 2", at=time.time() - 60)
    assert copied(shelf, here)["mirror/bytes"] > 0
    assert copied(shelf, here) == {}, "nothing was new"
    read: list[str] = []
    monkeypatch.setattr(Shelf, "get", lambda self, name: read.append(name))
    assert bring_back(shelf, here) == 0
    assert not read, "it came from here"
    monkeypatch.undo()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    there = tape(tmp_path / "there")
    bring_back(shelf, there)
    assert copied(shelf, there) == {}, "what came from there does not go back"
    write(there, "c 3")
    copied(shelf, there)
    assert len(shelf.names("tape.parts/")) == 2
    assert bring_back(shelf, here) == 1
    assert set(held(here)) == {"a", "b", "c"}


def test_a_tape_whose_folder_was_emptied_is_copied_again_from_its_beginning(bucket: Bucket, tmp_path: Path) -> None:
    shelf, here = Shelf("gs://runs/g"), tape(tmp_path / "here")
    write(here, "a 1", at=time.time() - 60)
    copied(shelf, here)
    for name in shelf.names():
        shelf.remove(name)
    write(here, "b 2", at=time.time() - 30)
    assert copied(shelf, here)["mirror/bytes"] > 0
    assert copied(shelf, here) == {}, "once is enough"
    there = tape(tmp_path / "there")
    bring_back(shelf, there)
    assert held(there) == held(here) == {"a": "a 1", "b": "b 2"}


def test_what_is_brought_back_stays_within_the_bound_of_the_tape_and_is_the_youngest(bucket: Bucket, tmp_path: Path) -> None:
    shelf = Shelf("gs://runs/h")
    for number in range(8):  # nothing that could be compressed, from two processes in turn
        index = (number + 1) % 2
        here = tape(tmp_path / f"here-{index}")
        write(here, f"page-{number} {random.Random(number).randbytes(300_000).hex()}")
        copied(shelf, here, index)
    there = dataclasses.replace(tape(tmp_path / "there"), max_mb=1)
    bring_back(shelf, there)
    with tape_mirror._opened(there) as file:
        assert file.bytes_used <= 1 << 20
    left = sorted(held(there))
    assert left
    assert left == [f"page-{number}" for number in range(8)][-len(left) :]


def test_what_was_written_while_it_was_copied_is_not_lost(bucket: Bucket, tmp_path: Path) -> None:
    """Who writes takes the time, and waits for its turn: it is there later than what is younger."""
    shelf, here = Shelf("gs://runs/c"), dataclasses.replace(tape(tmp_path / "here"), busy_s=2.0)
    write(here, "younger one")
    copied(shelf, here)
    write(here, "older one", at=time.time() - 1)
    copied(shelf, here)
    there = tape(tmp_path / "there")
    bring_back(shelf, there)
    assert set(held(there)) == {"younger", "older"}


def test_a_part_is_cut_where_it_is_large_enough_and_small_ones_are_joined(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, here = Shelf("gs://runs/d"), tape(tmp_path / "here")
    copy, now = TapeMirror(shelf, here, Metrics(), every_s=3600), time.time()
    for number in range(40):  # nothing that could be compressed
        write(here, f"page-{number} {random.Random(number).randbytes(150_000).hex()}", at=now - 1000 + number)
    monkeypatch.setattr(tape_mirror, "_PART", 100_000)
    copy._copy(time.time())
    assert len(shelf.names("tape.parts/")) == 40 - 32 + 1
    copy.close()
    there = tape(tmp_path / "there")
    assert bring_back(shelf, there) == 40
    assert held(there) == held(here)


def test_a_bucket_that_fails_is_told_once_and_what_it_missed_is_copied_later(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, plain_log: None
) -> None:
    monkeypatch.setattr("dr_jax.train.mirror._TRIED_S", 0.2)
    shelf, here, metrics = Shelf("gs://runs/e"), tape(tmp_path / "here"), Metrics()
    write(here, "a 1")
    bucket.share = 1.0
    copy = TapeMirror(shelf, here, metrics, every_s=0.05)
    time.sleep(1.5)
    copy.close()
    assert metrics.drain()["mirror/failed"] >= 2
    assert [record.getMessage()[:24] for record in caplog.records].count("the tape cannot be copie") == 1
    bucket.share = 0.0
    copied(shelf, here)
    assert bring_back(shelf, tape(tmp_path / "there")) == 1


def test_of_those_who_share_a_tape_the_first_copies_it() -> None:
    assert [copies(["x", "y", "x", "z", "y"], index) for index in range(5)] == [True, True, False, True, False]


@pytest.mark.slow
async def test_a_run_that_goes_on_on_another_machine_remembers_the_web(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for kind in (Mirror, Checkpoints, TapeMirror):
        monkeypatch.setattr(kind, "close", lambda self, close=kind.close: (closed.append(type(self).__name__), close(self)))

    def told(phase: str, index: int, numbers: Any) -> None:
        """Say nothing."""

    where = tmp_path / "web" / "tape"
    overrides = [
        f"out='{tmp_path}'",
        "name='run'",
        "steps=1",
        *SMALL[:-1],
        "checkpoint.directory='gs://runs/f/checkpoints'",
        "web.tape.mode='record'",
        f"web.tape.path='{where}'",
    ]
    settings = read(Settings, ROOT / "configs" / "quickstart.toml", overrides)
    await train(settings, told=told)
    assert closed == ["Mirror", "Checkpoints", "TapeMirror"], "who has little time saves the run first"
    with tape_mirror._opened(settings.web.tape) as file:
        before = {kind: row["entries"] for kind, row in stats(file)["kinds"].items()}
    assert before["search"] > 0
    shutil.rmtree(where.parent)
    shutil.rmtree(tmp_path / "run")
    resumed = time.time()
    await train(dataclasses.replace(settings, steps=2), resume=True, told=told)
    with tape_mirror._opened(settings.web.tape) as file:
        rows = file.base.execute("select kind, count(*) from entries where at < ? group by kind", (resumed,))
        assert dict(rows.fetchall()) == before
