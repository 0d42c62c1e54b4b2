"""A number of workers that follows the cluster, between a least and a most: Ray Train's elastic policy, amended.

As it is in Ray 2.60 it waits for the least for ever, counts nodes that may have died 20 s ago or are drained, and ends
a group that trains as soon as more workers fit, with all steps since the last checkpoint. Here the wait has a limit,
the nodes are those of now that are to stay, and a group makes way right after a checkpoint.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)

from minos_ray.cluster.ray_tables import draining
from minos_ray.errors import StorageFailed, WorkStopped
from minos_ray.store.run import Run
from minos_ray.training.checkpoint import complete_checkpoints

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

# How often a group that trains is compared with what would fit.
LOOK_EVERY_S = 60.0
# Longest wait for a group of which the nodes had room a moment ago; then they are counted again.
START_S = 30.0


class FollowingCluster(ElasticScalingPolicy):
    """In Ray Train's controller. `places`: the folder and the key of each training's checkpoints in the run."""

    def __init__(self, scaling: ScalingConfig, wait_s: float, path: str, places: Sequence[tuple[str, str]]) -> None:
        super().__init__(scaling)
        self.wait_s, self.path, self.places = wait_s, path, places
        self.waiting_since: float | None = None
        self.asked, self.reserved = float("-inf"), None
        # The newest checkpoints when another number was found to fit; None when it is not.
        self.saved: list[str] | None = None

    def _get_reserved_resources(self) -> Any:
        """What the nodes of now that are to stay have for this training, None when nobody answers."""
        if time.monotonic() - self.asked >= self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self.asked, self.reserved = time.monotonic(), None
            with suppress(RayError):  # it is asked again
                answer = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
                reserved, leaving = ray.get(answer, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S), draining()
                self.reserved = {node: resources for node, resources in reserved.items() if node not in leaving}
        return self.reserved

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many as fit; WorkStopped when the least do not fit within the limit."""
        self.saved = None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = time.monotonic()
        elif time.monotonic() - self.waiting_since > self.wait_s:
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


def follow_cluster(trainer: "TorchTrainer", wait_s: float, path: str, places: Sequence[tuple[str, str]]) -> None:
    """Lets a Ray Train run of (least, most) workers use this policy; Ray has no setting for one's own."""
    start = trainer._initialize_and_run_controller
    policy = FollowingCluster(trainer.scaling_config, wait_s, path, places)
    trainer._initialize_and_run_controller = lambda **arguments: start(**arguments | {"scaling_policy": policy})
