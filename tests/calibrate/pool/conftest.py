"""A real Ray cluster of several nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# It sets what Ray reads when it is imported.
pytest.importorskip("calibrate.pool.ray_pool")

# isort: split
import ray
from ray.cluster_utils import Cluster

STORE_BYTES = 100 * 2**20


class Nodes:
    """A head without devices, and nodes that come and go.

    Attributes:
        address: For `--ray`.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.address = str(cluster.address)

    def add(self, devices: int = 2) -> None:
        """Returns when the node is there; on a busy machine one may end itself before, and another takes its place."""
        for attempts_left in (2, 1, 0):
            node = self._cluster.add_node(wait=False, num_cpus=devices, object_store_memory=STORE_BYTES)
            try:
                # That one, not so many as there should be: one that went a moment ago may be counted still.
                self._cluster._wait_for_node(node, timeout=100)
                return
            except TimeoutError:
                if not attempts_left:
                    raise
                self._cluster.remove_node(node, allow_graceful=False)

    def settle(self) -> None:
        """Returns when the nodes that Ray counts are those that are there."""
        self._cluster.wait_for_nodes(timeout=120)

    def remove(self, count: int = 1) -> None:
        """As a machine goes that loses its power."""
        for node in list(self._cluster.worker_nodes)[:count]:
            self._cluster.remove_node(node, allow_graceful=False)

    def restore(self, count: int = 2) -> None:
        while len(self._cluster.worker_nodes) < count:
            self.add()


@pytest.fixture(scope="module")
def whole_cluster() -> Iterator[Nodes]:
    # A node that is lost is found to be lost after three seconds, in place of fifteen. One that is only slow to answer
    # is not: the head of a busy machine would end itself, and the run with it.
    # And devices are no background work, as in a cluster that a run starts by itself.
    system = {
        "health_check_period_ms": 1000, "health_check_timeout_ms": 30000, "health_check_failure_threshold": 3,
        "worker_niceness": 0,
    }  # fmt: skip
    head = {
        "num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES, "_system_config": system,
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        # A later one would join what is left of it.
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def nodes(whole_cluster: Nodes) -> Nodes:
    """A cluster with two nodes of two devices each."""
    whole_cluster.restore()
    whole_cluster.settle()
    return whole_cluster
