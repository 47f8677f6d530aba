"""A run's files in a bucket that fails now and then, and back again."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.train import mirror, state
from dr_jax.train.mirror import Mirror, Shelf, bring_back
from dr_jax.train.settings import CheckpointSettings, Settings

pytest.importorskip("gcp_storage_emulator")
pytest.importorskip("google.cloud.storage")

from tests.train.bucket import Bucket


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def append(directory: Path, *lines: str) -> None:
    with (directory / "episodes.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_what_grows_is_copied_once_through_failures_and_comes_back(bucket: Bucket, run: Path, tmp_path: Path) -> None:
    bucket.share = 0.1
    shelf, metrics = Shelf("gs://runs/a"), Metrics()
    with Mirror(shelf, run, metrics) as copy:
        for number in range(40):
            append(run, f"line {number}")
            assert copy.flush(60)
    assert bucket.answered[503] > 2
    assert len(shelf.names("episodes.jsonl.parts/")) == 9  # 32 were joined, 8 are alone
    assert metrics.drain()["mirror/bytes"] == len((run / "episodes.jsonl").read_bytes()) + len("{}")
    assert bring_back(shelf, tmp_path / "new")
    for name in ("config.json", "episodes.jsonl"):
        assert (tmp_path / "new" / name).read_bytes() == (run / name).read_bytes()
    assert not bring_back(shelf, tmp_path / "new"), "what is here is not written over"


def test_a_resume_copies_only_what_is_new_and_removes_what_is_done_again(bucket: Bucket, run: Path, tmp_path: Path) -> None:
    shelf = Shelf("gs://runs/b")
    append(run, "one", "two")
    with Mirror(shelf, run, Metrics()) as copy:
        assert copy.flush(60)
        append(run, "three")
    (run / "episodes.jsonl").write_text("one\ntwo\n")  # as if the third step were done again
    append(run, "3")
    metrics = Metrics()
    with Mirror(shelf, run, metrics):
        pass
    assert metrics.drain()["mirror/bytes"] == len("3\n") + len("{}")
    assert bring_back(shelf, tmp_path / "new")
    assert (tmp_path / "new" / "episodes.jsonl").read_text() == "one\ntwo\n3\n"


def test_parts_that_a_crash_left_beside_the_one_they_were_joined_to_are_passed_over(bucket: Bucket, tmp_path: Path) -> None:
    shelf = Shelf("gs://runs/c")
    for span, text in (("0-2", b"ab"), ("2-4", b"cd"), ("0-4", b"abcd"), ("4-5", b"e"), ("7-8", b"x")):
        shelf.put(f"episodes.jsonl.parts/{span}", text)
    shelf.put("config.json", b"{}")
    assert bring_back(shelf, tmp_path / "new")
    assert (tmp_path / "new" / "episodes.jsonl").read_bytes() == b"abcde"


def test_a_bucket_that_fails_is_told_once_and_never_ends_a_run(
    bucket: Bucket, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, plain_log: None
) -> None:
    monkeypatch.setattr(mirror, "_TRIED_S", 0.2)
    bucket.share, metrics = 1.0, Metrics()
    copy = Mirror(Shelf("gs://runs/d"), run, metrics)
    start = time.monotonic()
    assert not copy.flush(3)
    append(run, "one")
    copy.close(3)
    assert time.monotonic() - start < 8
    assert metrics.drain()["mirror/failed"] >= 2
    assert [record.getMessage()[:28] for record in caplog.records].count("config.json cannot be copied") == 1
    bucket.share = 0.0
    with Mirror(Shelf("gs://runs/d"), run, metrics):
        pass
    assert "episodes.jsonl.parts/000000000000000-000000000000004" in Shelf("gs://runs/d").names()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gs://closed/run", r"gs://closed/run.files refuses to be read or written.*Fix: gcloud storage buckets add-iam"),
        ("gs://nowhere/run", r"There is no bucket gs://nowhere.*Fix: gcloud storage buckets create gs://nowhere"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told_before_anything_begins(bucket: Bucket, place: str, said: str) -> None:
    settings = replace(Settings(), checkpoint=CheckpointSettings(directory=place))
    with pytest.raises(CheckpointError, match=said):
        state.shelf(settings, 0, resume=False)


def test_what_is_no_place_in_a_bucket_is_said() -> None:
    for wrong in ("gs://", "gs://runs", "runs/x"):
        with pytest.raises(ConfigError, match="is no place in a bucket"):
            Shelf(wrong)


def test_no_mirror_without_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    monkeypatch.setitem(sys.modules, "google.auth.exceptions", None)
    assert state.shelf(Settings(), 0, resume=True) is None
    with pytest.raises(ConfigError, match=r"Fix: pip install 'dr-jax\[gcs\]'"):
        Shelf("gs://runs/x")
