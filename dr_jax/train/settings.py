"""Everything that a run can be told, as one tree of settings. Each table is defined in the layer that uses it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from dr_jax.agent.prompt import PromptSettings
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.tools import ToolSettings
from dr_jax.base.config import to_tree
from dr_jax.engine.settings import EngineSettings
from dr_jax.learn.batch import BatchSettings
from dr_jax.learn.losses import LossSettings
from dr_jax.learn.optimizer import OptimizerSettings
from dr_jax.model.lora import LoraSettings
from dr_jax.model.packed import How
from dr_jax.model.sizes import NAMED
from dr_jax.rewards.total import RewardSettings
from dr_jax.rollout.episode import EpisodeSettings
from dr_jax.sharding.mesh import MeshSettings
from dr_jax.train.demonstrate import Manners
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.together import ProcessSettings
from dr_jax.train.trackers import ReportSettings
from dr_jax.train.worlds import LittlewebSettings
from dr_jax.web.settings import WebSettings


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Which policy is trained.

    Args:
        load: a directory in Hugging Face format, a run's directory (the weights of its newest checkpoint) or one of its
            `checkpoints/STEP`, a `.gguf` file, `smollm2` (from its package), or a named size with fresh weights (`tiny`,
            `qwen2.5-0.5b`, …).
        tokenizer: a directory with tokenizer files; "" means the model's own.
        dtype: of the weights in the engine and of the matrix products of the update; master weights are float32. With
            `lora.rank` the model's own weights, which stay as they are, are of this type, too.
        attention: how the update attends: `auto` is the fastest that this device has, tried at the start, and on one CPU its
            kernel; `plain` is JAX without kernels; `splash` is TPU's kernel, `triton` and `cudnn` are GPU's, `native` is that
            of a CPU, which its C++ compiler makes. Where one cannot be used, `plain` is.
    """

    load: str = "data/littleweb_policy"
    tokenizer: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: How = "auto"


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Which questions are asked.

    Args:
        path: a question file (parquet, JSONL); "" asks questions of littleweb.
        eval_path: held-out questions; "" means the held-out world of littleweb or, with `path`, that file in `eval`.
        limit: how many questions of `path` are used, taken evenly from its sources; 0 is all.
        hops: of littleweb's questions.
        questions: how many questions are drawn from littleweb's training world.
    """

    path: str = ""
    eval_path: str = ""
    limit: int = 0
    hops: tuple[int, ...] = (1, 2, 3)
    questions: int = 2000

    def __post_init__(self) -> None:
        if not self.hops or not set(self.hops) <= {1, 2, 3}:
            raise ValueError(f"hops = {self.hops}; some of 1, 2 and 3 are needed")
        if self.limit < 0 or self.questions < 1:
            raise ValueError(f"limit = {self.limit}, questions = {self.questions}; 0 or more and at least 1 are needed")


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """How many episodes make one update, how old they may be, and where they are sampled.

    Args:
        groups: questions per update.
        group_size: siblings per question (G); their mean is the baseline, so at least 2.
        spare: siblings beyond G that are started; when G of a group are trainable the slowest are cancelled. The first to
            end are the shortest, so research that takes longer is learned from less.
        in_flight: episodes at once; 0 means as many as can be learned from before they are too old, those of
            `staleness + 1` updates. With more, the first groups to be complete are learned from and some of the others are
            cancelled, which favours questions that are quickly done.
        staleness: how many versions old a trained token may be. 0 collects every batch with the newest weights; otherwise
            episodes go on across updates, and those that would be older at the next one are cancelled.
        failed_share: most of a group's siblings that the world may fail. With more, the group is dropped, because those who
            survive an outage are the quick ones, and its question is asked again.
        devices: so many devices, the last ones, are the engine's alone, and `mesh` is made of the others; 0 has engine and
            update take turns on all of them.
        ray: workers on other hosts that sample as well, and come and go.
    """

    groups: int = 8
    group_size: int = 8
    spare: int = 0
    in_flight: int = 0
    staleness: int = 0
    failed_share: float = 0.25
    devices: int = 0
    ray: RaySettings = field(default_factory=RaySettings)

    @property
    def siblings(self) -> int:
        """How many are started for a question."""
        return self.group_size + self.spare

    @property
    def at_once(self) -> int:
        """How many groups are under way together."""
        return max(1, self.in_flight // self.siblings) if self.in_flight else self.groups * (self.staleness + 1)

    @property
    def most(self) -> int:
        """How many groups are under way, complete, or being learned from."""
        return max(self.groups * (self.staleness + 1), self.at_once)

    @property
    def drains(self) -> bool:
        """Whether an update waits for all that is under way, and nothing is under way while it lasts."""
        return not self.staleness and self.at_once <= self.groups

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size = {self.group_size}; GRPO compares siblings, so at least 2 are needed (8 or 16 are usual)"
            )
        if self.groups < 1 or min(self.spare, self.in_flight, self.staleness, self.devices) < 0:
            raise ValueError(
                f"{self}: groups of at least 1, and spare, in_flight, staleness and devices of at least 0 are needed"
            )
        if 0 < self.in_flight < self.siblings:
            raise ValueError(
                f"in_flight = {self.in_flight} is less than the {self.siblings} siblings of one group (group_size + spare); "
                f"at least {self.siblings} are needed, or 0 for as many as can be learned from"
            )
        if not 0 <= self.failed_share < 1:
            raise ValueError(f"failed_share = {self.failed_share}; a share from 0 to below 1 is needed")


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How a policy is measured.

    Args:
        questions: how many held-out questions; 0 is every one of `data.eval_path`, and none where there is no such file.
        every: also measure after every this many updates; 0 only before and after.
        temperature: of the sampling; 0 is greedy.
        in_flight: episodes at once.
    """

    questions: int = 256
    every: int = 0
    temperature: float = 0.0
    in_flight: int = 64

    def __post_init__(self) -> None:
        if self.questions < 0 or self.every < 0 or self.temperature < 0 or self.in_flight < 1:
            raise ValueError(f"{self}: no negative number and at least one episode in flight are needed")


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """When a run is saved.

    Args:
        every: updates between two checkpoints; 0 saves only at the end.
        keep: how many are kept.
        directory: local or `gs://…`; "" means `checkpoints` in the run's directory.
        mirror: `gs://…` where settings, metrics, episodes, progress and the tape that is recorded are copied to while the run
            goes on; "" means beside the checkpoints, `DIRECTORY.files`, where those are in a bucket, and nowhere otherwise.
        grace_s: seconds after SIGTERM in which the process is gone; what is not saved by then is done again by a resume.
    """

    every: int = 10
    keep: int = 2
    directory: str = ""
    mirror: str = ""
    grace_s: float = 18.0

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1 or self.grace_s <= 0:
            raise ValueError(
                f"every = {self.every}, keep = {self.keep}, grace_s = {self.grace_s}; "
                "0 or more, at least 1 and more than 0 s are needed"
            )


@dataclass(frozen=True, slots=True)
class ColdStartSettings:
    """The supervised start: demonstrations by scripted researchers.

    Args:
        size: a named model size with fresh weights, trained from nothing.
        vocabulary: ids of the tokenizer that is trained first, on demonstrations of its own.
        worlds: how many fresh worlds the demonstrations come from.
        questions: drawn from each world.
        reading: share of the updates, from the first on, in which every token counts, what the web said included: a fresh
            model learns to read before it learns to research.
        careful: share of the updates, from the first on, that show diligent researchers only.
        manners: which researchers are shown after that, and how often.
    """

    size: str = "tiny"
    vocabulary: int = 1536
    worlds: int = 40
    questions: int = 400
    reading: float = 0.0
    careful: float = 0.9
    manners: Manners = field(default_factory=Manners)

    def __post_init__(self) -> None:
        if self.size not in NAMED:
            raise ValueError(f"size = {self.size!r}; one of {', '.join(NAMED)} is needed")
        if min(self.worlds, self.questions) < 1:
            raise ValueError(f"worlds = {self.worlds}, questions = {self.questions}; at least 1 of each is needed")
        if not (0 <= self.reading <= 1 and 0 <= self.careful <= 1):
            raise ValueError(f"reading = {self.reading}, careful = {self.careful}; shares from 0 to 1 are needed")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run.

    Args:
        name: its directory below `out`.
        seed: of everything random.
        steps: policy updates.
        mismatch_gate: the run stops when engine and trainer disagree by more than this about an on-policy token's
            log-probability; 0 is off.
        advantage: a recipe of `learn.advantage`, or `module:function`.
        remat: what the update computes again in the backward pass, to save memory: `none`; all but the results of matrix
            `products`; `full`, every layer; `auto` is the first of these that fits.
        memory_gib: GiB of each device that a run may fill, where `remat = "auto"` or `batch.rows = 0` have that matter; 0 is
            nine tenths of what an accelerator says it has, and on a CPU half of what the host has free.
    """

    name: str = "run"
    out: str = "runs"
    seed: int = 0
    steps: int = 20
    mismatch_gate: float = 1e-3
    advantage: str = "standardized"
    remat: Literal["none", "products", "full", "auto"] = "none"
    memory_gib: float = 0.0
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    littleweb: LittlewebSettings = field(default_factory=LittlewebSettings)
    web: WebSettings = field(default_factory=WebSettings)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    tools: ToolSettings = field(default_factory=ToolSettings)
    reader: ReaderSettings = field(default_factory=ReaderSettings)
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    processes: ProcessSettings = field(default_factory=ProcessSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
    cold_start: ColdStartSettings = field(default_factory=ColdStartSettings)

    def __post_init__(self) -> None:
        if min(self.steps, self.mismatch_gate, self.memory_gib) < 0:
            raise ValueError(
                f"steps = {self.steps}, mismatch_gate = {self.mismatch_gate}, memory_gib = {self.memory_gib}; "
                "none may be negative"
            )
        if self.lora.rank and self.optimizer.name == "muon":
            raise ValueError(
                "muon orthogonalises whole matrices and lora.rank trains factors of them; optimizer.name = adamw is needed"
            )

    @property
    def terms(self) -> str:
        """By which the siblings of a group speak and are rewarded, as text: only those of the same terms can be compared."""
        episode = {name: value for name, value in to_tree(self.episode).items() if not name.endswith("_s")}
        group = {"size": self.rollout.group_size, "spare": self.rollout.spare}
        return json.dumps({"episode": episode, "reward": to_tree(self.reward), "group": group}, sort_keys=True)
