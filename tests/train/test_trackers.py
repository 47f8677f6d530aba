"""TensorBoard and Weights & Biases, read back from what their own packages wrote."""

import dataclasses
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dr_jax.base.config import read
from dr_jax.base.errors import ConfigError
from dr_jax.train.loop import train
from dr_jax.train.report import Report, read_metrics, write_json
from dr_jax.train.settings import Settings
from dr_jax.train.trackers import ReportSettings, TensorBoard
from tests.report.runs import evaluation

ROWS = {1: {"rollout/reward": 0.25, "wall_s": 10.0}, 2: {"rollout/reward": 0.5, "wall_s": 30.0}}


def records(path: Path) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, data, their checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def scalars(directory: Path) -> list[tuple[int, str, float, float]]:
    """Step, tag, value and time of every scalar that stands in the event files of a run."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        for event in map(Event.FromString, records(path)):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found.append((event.step, value.tag, value.simple_value, event.wall_time))
    return found


def chunks(path: Path) -> Iterator[bytes]:
    """The records of W&B's file: a head of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole, at = whole + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def sent(directory: Path, kind: str) -> list[dict[str, Any]]:
    """What W&B keeps of a run to send later, of one kind, as JSON values under their names."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted((directory / "wandb").glob("offline-run-*/*.wandb"), key=lambda one: one.stat().st_mtime_ns):
        for record in map(Record.FromString, chunks(path)):
            if record.WhichOneof("record_type") == kind:
                one = getattr(record, kind)
                items = one.item if kind == "history" else one.config.update if kind == "run" else one.update
                found.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return found


def ids(directory: Path) -> set[str]:
    """The ids under which W&B keeps a run."""
    return {path.name.rpartition("-")[2] for path in (directory / "wandb").glob("offline-run-*")}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B, which asks nobody."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")


def begun(directory: Path) -> Path:
    write_json(directory / "config.json", {"seed": 3, "model": {"load": "tiny"}})
    return directory


def test_tensorboard_has_every_step_once_also_when_steps_are_done_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    also, before = ReportSettings(tensorboard=True), evaluation(0.25, 1.0)
    with Report(begun(tmp_path), also=also) as report:
        report.measured(0, before)
        for step, numbers in ROWS.items():
            report.step(step, numbers | {"update/loss": float("nan")})
        report.step(3, {"rollout/reward": 9.0, "wall_s": 60.0})
    with Report(tmp_path, keep_below=3, also=also) as report:
        report.measured(0, before)
        report.step(3, {"rollout/reward": 0.75, "wall_s": 50.0})
        report.measured(3, evaluation(0.5, 2.0))
    found = scalars(tmp_path)
    assert [(step, value) for step, tag, value, _ in found if tag == "rollout/reward"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [(step, value) for step, tag, value, _ in found if tag == "eval/f1"] == [(0, 0.25), (3, 0.5)]
    assert max(Counter((step, tag) for step, tag, _, _ in found).values()) == 1
    assert not [tag for _, tag, _, _ in found if tag == "update/loss"]
    at = {step: when for step, tag, _, when in found if tag == "rollout/reward"}
    assert at[2] - at[1] == pytest.approx(20.0)  # as far apart as they were


@pytest.mark.slow
def test_tensorboard_itself_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Report(begun(tmp_path), also=ReportSettings(tensorboard=True)) as report:
        for step, numbers in ROWS.items():
            report.step(step, numbers)
        report.summary({"name": "run"})
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["rollout/reward", "wall_s"]
    assert [(one.step, one.value) for one in found.Scalars("rollout/reward")] == [(1, 0.25), (2, 0.5)]
    (text,) = (found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"] if "con" in name)
    assert json.loads(text) == {"seed": 3, "model": {"load": "tiny"}}


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_a_resumed_run_goes_on_in_the_same_run_of_wandb_and_sends_no_step_twice(tmp_path: Path) -> None:
    also, before = ReportSettings(wandb="mine"), evaluation(0.25, 1.0)
    with Report(begun(tmp_path), also=also) as report:
        report.measured(0, before)
        report.step(1, ROWS[1])
        report.step(2, {"rollout/reward": 9.0})
    with Report(tmp_path, keep_below=2, also=also) as report:
        report.measured(0, before)
        report.step(2, ROWS[2])
        report.step(3, {"rollout/reward": 0.75})
        report.measured(3, evaluation(0.5, 2.0))
        report.summary({"eval": {"after": evaluation(0.5, 2.0)}})
    rows = sent(tmp_path, "history")
    assert [(row["_step"], row.get("rollout/reward")) for row in rows] == [(0, None), (1, 0.25), (2, 9.0), (3, 0.75)]
    assert [(row["_step"], row["eval/f1"]) for row in rows if "eval/f1" in row] == [(0, 0.25), (3, 0.5)]
    assert ids(tmp_path) == {json.loads((tmp_path / "wandb.json").read_text())["id"]}
    assert sent(tmp_path, "run")[0]["seed"] == 3
    assert any(update.get("run", {}).get("eval", {}).get("after", {}).get("f1") == 0.5 for update in sent(tmp_path, "summary"))


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_who_turns_wandb_on_later_or_names_another_project_gets_every_step(tmp_path: Path) -> None:
    with Report(begun(tmp_path)) as report:
        for step, numbers in ROWS.items():
            report.step(step, numbers)
    for project in ("mine", "ours/other"):
        with Report(tmp_path, keep_below=3, also=ReportSettings(wandb=project)):
            pass
    assert [row["_step"] for row in sent(tmp_path, "history")] == [1, 2, 1, 2]
    assert len(ids(tmp_path)) == 2


@pytest.mark.usefixtures("plain_log")
def test_a_copy_that_fails_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As W&B's does when its own process was killed."""

    def lost(*told: object) -> None:
        raise ConnectionResetError("Connection lost")

    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(TensorBoard, "step", lost)
    with Report(begun(tmp_path), also=ReportSettings(tensorboard=True)) as report:
        for step, numbers in ROWS.items():
            report.step(step, numbers)
    assert [record.getMessage() for record in caplog.records if record.name == "dr_jax.train.report"] == [
        "TensorBoard is told nothing more: ConnectionResetError: Connection lost"
    ]
    assert read_metrics(tmp_path) == [{"step": step, **numbers} for step, numbers in ROWS.items()]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
async def test_what_is_missing_is_said_before_anything_else(
    name: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    wanted = ReportSettings(**{name: "mine" if name == "wandb" else True})
    with pytest.raises(ConfigError, match=rf"report\.{name} needs .*pip install 'dr-jax\[{name}\]'"):
        await train(dataclasses.replace(settings, report=wanted), told=lambda phase, index, numbers: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("project", ["a/b/c", "/mine", "mine/"])
def test_a_project_has_at_most_one_slash(project: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
        read(Settings, None, [f"report.wandb={project}"])


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
async def test_a_run_that_is_stopped_and_goes_on_tells_both_the_same(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX")
    monkeypatch.setenv("SOME_SECRET", "tests-secret-value")
    settings = dataclasses.replace(
        settings,
        report=ReportSettings(tensorboard=True, wandb="mine"),
        prompt=dataclasses.replace(settings.prompt, date="tests-secret-value"),
        eval=dataclasses.replace(settings.eval, every=3),
    )

    def stop_after_three(phase: str, index: int, numbers: Mapping[str, Any]) -> None:
        if phase == "step" and index == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await train(settings, told=stop_after_three)
    summary = await train(settings, resume=True, told=lambda phase, index, numbers: None)
    run = tmp_path / "run"
    rows = {row["step"]: row["rollout/reward"] for row in read_metrics(run)}
    assert {step: value for step, tag, value, _ in scalars(run) if tag == "rollout/reward"} == pytest.approx(rows)
    assert {row["_step"]: row["rollout/reward"] for row in sent(run, "history") if row["_step"]} == pytest.approx(rows)
    expected = {0: summary["eval"]["before"]["f1"], 3: read_metrics(run)[2]["eval/f1"], 4: summary["eval"]["after"]["f1"]}
    assert {step: value for step, tag, value, _ in scalars(run) if tag == "eval/f1"} == pytest.approx(expected)
    assert {row["_step"]: row["eval/f1"] for row in sent(run, "history") if "eval/f1" in row} == pytest.approx(expected)
    for pairs in ([(step, tag) for step, tag, _, _ in scalars(run)], [(row["_step"],) for row in sent(run, "history")]):
        assert max(Counter(pairs).values()) == 1
    copies = [path for name in ("tensorboard", "wandb") for path in (run / name).rglob("*") if path.is_file()]
    assert copies
    assert not [path for path in copies if b"tests-secret-value" in path.read_bytes()]
