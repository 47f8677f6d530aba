"""What can be said about workers elsewhere, the table `rollout.ray`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class WebWorkerSettings:
    """Workers that search, open and read pages for this run on other hosts, placed by Ray; the table `rollout.ray.web`.

    Each is a gateway (see `web.gateways`) that comes with the run and goes with it, with pace, memory and tape of its own. All
    pages of a host are opened by one of them, so that `web.pace.per_host_per_s` holds for the run (except where a page leads to
    another host: who follows is who asks), and everything is searched by one. When one is lost, its requests go to another.
    A host joins with `ray start --address=HEAD:6379 --resources='{"dr_jax_web": 1}'`, with the search keys in the environment
    of that command: they are not sent anywhere.

    Args:
        workers: how many; 0 leaves the web's work to the trainer's own host.
        resource: the name of a resource of which each takes 1 of its host; "" takes none.
        cpus: that each takes of its host; pages are read in `web.extract.workers` processes of each.
        start_s: for the first worker to be there when the run begins, and for each that has a host to open its ways out.
    """

    workers: int = 0
    resource: str = "dr_jax_web"
    cpus: float = 1.0
    start_s: float = 120.0

    def __post_init__(self) -> None:
        if min(self.workers, self.cpus) < 0 or self.start_s <= 0:
            raise ValueError(f"{self}: workers and cpus of at least 0 and more than 0 s are needed")


@dataclass(frozen=True, slots=True)
class RaySettings:
    """Workers that sample for this run on other hosts, placed by Ray.

    The trainer keeps the episodes; a worker holds an engine and is asked for one continuation at a time. A host joins with
    `ray start --address=HEAD:6379 --resources='{"dr_jax_rollout": 1}'`, and may be taken away at any moment: what was drawn
    there goes on elsewhere. Each host needs the same dr_jax, JAX, Ray and Python, and no model: weights come from the trainer.

    Args:
        workers: the most workers; those for which no host has room yet start when one joins. 0 has no use for Ray.
        address: of the cluster: `auto` (the one that this machine belongs to), `HOST:6379`, `ray://HOST:10001` (from outside of
            it), or `local`, which starts one on this machine, to try it out.
        resource: the name of a resource of which each worker takes 1 of its host; "" takes none.
        cpus: that each worker takes of its host.
        gpus: that each worker takes; its engine runs on all of them.
        own: whether the trainer's own engine samples as well.
        in_flight: requests that one worker has at once; 0 means `engine.slots`.
        connect_s: for the cluster to answer.
        start_s: for a worker that has a host to load the weights and compile, and for newer weights to reach it.
        report_s: a worker says at least so often what it has drawn; what a killed one has not said is drawn again.
        silent_s: one that says nothing for so long is given up.
        stalled_s: likewise one that is alive, and draws nothing of what it was asked for.
        alone_s: without `own`: how long the run waits for any worker, before it stops.
        rest_s: before another is started in the place of one that could not be used; doubled each time, up to 16 times that.
        clock_s: how far a worker's clock may be from the trainer's.
        web: workers for the web's work.
    """

    workers: int = 0
    address: str = "auto"
    resource: str = "dr_jax_rollout"
    cpus: float = 1.0
    gpus: float = 0.0
    own: bool = True
    in_flight: int = 0
    connect_s: float = 30.0
    start_s: float = 900.0
    report_s: float = 0.5
    silent_s: float = 20.0
    stalled_s: float = 600.0
    alone_s: float = 900.0
    rest_s: float = 5.0
    clock_s: float = 5.0
    web: WebWorkerSettings = field(default_factory=WebWorkerSettings)

    def __post_init__(self) -> None:
        if min(self.workers, self.in_flight) < 0 or min(self.cpus, self.gpus) < 0:
            raise ValueError(f"{self}: no negative number is possible")
        for name in ("connect_s", "start_s", "report_s", "silent_s", "stalled_s", "alone_s", "rest_s", "clock_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; more than 0 s is needed")
        if self.silent_s < 2 * self.report_s:
            raise ValueError(f"silent_s = {self.silent_s}; at least twice report_s = {self.report_s} is needed")
        if not self.own and not self.workers:
            raise ValueError("own = false with workers = 0 leaves nobody to sample; set workers, or own = true")
        if not self.address:
            raise ValueError("address is empty; auto, HOST:6379, ray://HOST:10001 or local is needed")
