"""A number of workers that follows the cluster, between a least and a most: Ray Train's elastic policy, amended.

As it is in Ray 2.60 it waits for the least for ever, counts what nodes have in all, whoever holds it and whatever their
labels, also those that are drained or died 20 s ago, and ends a group that trains as soon as more workers fit, with all
steps since the last checkpoint. Here the wait has a limit, what is free on the nodes that may take a worker is counted,
and a group makes way right after a checkpoint.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from minos_ray.cluster.connect import free_for
from minos_ray.cluster.room import Bundles, bundles, held_by_this_actor, room
from minos_ray.config.resources import Workers
from minos_ray.errors import StorageFailed, WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.checkpoint import complete_checkpoints
from minos_ray.training.spares import NodeLeaves

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# How often a group that trains is compared with what would fit.
LOOK_EVERY_S = 60.0
# Longest wait for a group of which the nodes had room a moment ago; then they are counted again.
START_S = 30.0
# What was just released is free a moment later: no group starts with fewer than it may have before that.
SETTLED_S = 2.0


class DrainsExcused(DefaultFailurePolicy):
    """In Ray Train's controller: a group that stopped, all saved, because a node is to go starts again, uncounted."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        failures = getattr(training_failed_error, "worker_failures", {})
        if failures and all(isinstance(error, NodeLeaves) for error in failures.values()):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class FollowingCluster(ElasticScalingPolicy):
    """In Ray Train's controller. `need`: as many workers as it may have; `places`: the folder and the key of each
    training's checkpoints in the run."""

    def __init__(
        self, scaling: ScalingConfig, need: Bundles, wait_s: float, path: str, places: Sequence[tuple[str, str]]
    ) -> None:
        super().__init__(scaling)
        self.need, self.wait_s, self.path, self.places = need, wait_s, path, places
        self.waiting_since: float | None = None
        self.counted_at = float("-inf")
        self.nodes: list[dict[str, float]] | None = None
        # The newest checkpoints when another number was found to fit; None when it is not.
        self.saved: list[str] | None = None

    def _get_reserved_resources(self) -> Any:
        """What each node has free and what this training holds there, None when nobody answers."""
        if time.monotonic() - self.counted_at >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self.counted_at, self.nodes = time.monotonic(), None
            with suppress(RayError):  # it is asked again
                # A group that failed keeps its place until the next one is to start.
                self.nodes = free_for(self.need, held_by_this_actor())
        return self.nodes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """As everywhere here: also of fractions, with the conditions of the pool."""
        return room(self.need, reserved_resources)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many as fit; WorkStopped when the least do not fit within the limit."""
        self.saved = None
        decision = super().make_decision_for_non_running_worker_group()
        now = time.monotonic()
        if self.waiting_since is None:
            self.waiting_since = now
        waited = now - self.waiting_since
        if isinstance(decision, ResizeDecision):
            if decision.num_workers < self.need.count and waited < SETTLED_S:
                return NoopDecision()
            self.waiting_since = None
        elif waited > self.wait_s:
            raise WorkStopped(
                f"the nodes have no room for resources.train.workers.min = {self.scaling_config.min_workers} workers, "
                f"waited {self.wait_s:g} s (resources.wait_s)"
            )
        return decision

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Another number, if it fits, right after the next checkpoint."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        with suppress(StorageFailed):  # the next poll looks again
            if self.saved is not None and self.newest() != self.saved:
                self.saved, self._latest_monitor_time = None, float("-inf")  # the nodes are counted once more
                return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
            if self.saved is None and isinstance(decision, ResizeDecision):
                self.saved = self.newest()
        return NoopDecision()

    def newest(self) -> list[str]:
        """The newest checkpoint of each training; another list also when one is complete."""
        run = Run(self.path)
        return [c.folder for place, key in self.places for c in complete_checkpoints(run, place, key)[-1:]]


def excuse_drains(trainer: "TorchTrainer") -> None:
    """Lets a Ray Train run use `DrainsExcused`; Ray has no setting for a policy of one's own."""
    start = trainer._initialize_and_run_controller
    policy = DrainsExcused(trainer.run_config.failure_config)
    trainer._initialize_and_run_controller = lambda **arguments: start(**arguments | {"failure_policy": policy})


def follow_cluster(
    trainer: "TorchTrainer", workers: Workers, wait_s: float, path: str, places: Sequence[tuple[str, str]]
) -> None:
    """Lets a Ray Train run of (least, most) workers use this policy; Ray has no setting for one's own."""
    need = bundles(workers)._replace(count=workers.most)
    start = trainer._initialize_and_run_controller
    policy = FollowingCluster(trainer.scaling_config, need, wait_s, path, places)
    trainer._initialize_and_run_controller = lambda **arguments: start(**arguments | {"scaling_policy": policy})
