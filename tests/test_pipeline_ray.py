"""Pipelines on Ray, also where a node is lost: the bytes of this machine's own workers."""

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pipelines import ALL_STEPS, config_of, run, tree, write_inputs

from rslm.data.pipeline import make_plan
from rslm.data.pipeline.plan import write_plan

# Ray's own processes take seconds to start and to end.
pytestmark = [
    pytest.mark.slow,
    # What Ray leaves open, and what it says of its own future.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    return pytest.importorskip("ray")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs", n_files=12, n_documents=60)


@pytest.mark.usefixtures("ray")
def test_bytes_are_those_of_local_workers(inputs: Path, tmp_path: Path) -> None:
    run(config_of(inputs, tmp_path / "local", **ALL_STEPS), 2)
    run(config_of(inputs, tmp_path / "ray", **ALL_STEPS), 2, backend="ray")
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_bytes_are_the_same_where_a_node_is_lost(ray: Any, inputs: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    run(config_of(inputs, tmp_path / "local", **ALL_STEPS), 2)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20},
    )
    try:
        lost = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        config = config_of(inputs, tmp_path / "ray", **ALL_STEPS)
        nodes: list[int] = []

        def lose_node() -> None:
            while len(list((config.out / "filter").glob("*.report.json"))) < 3:
                time.sleep(0.01)
            nodes.append(sum(node["Alive"] for node in ray.nodes()))
            cluster.remove_node(lost, allow_graceful=False)

        thread = threading.Thread(target=lose_node)
        thread.start()
        run(config, backend="ray", address=cluster.address)
        thread.join()
        assert nodes == [2]
        assert not list(config.out.rglob("finalize/*.tmp.*"))
        assert tree(config.out) == tree(tmp_path / "local")
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_node_of_another_version_is_refused(
    ray: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rslm.data.pipeline import ray_backend

    plan = make_plan(config_of(inputs, tmp_path / "out"))
    plan.folder.mkdir()
    write_plan(plan)
    monkeypatch.setattr(ray_backend, "VERSION", "0.0.0")
    with pytest.raises(ValueError, match=r"every node must have rslm 0\.0\.0, got"):
        run(plan.config, backend="ray")
    assert not ray.is_initialized()


@pytest.mark.usefixtures("ray")
def test_address_where_nothing_listens_is_refused_at_once(inputs: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"address must be of a Ray cluster, got {address}"):
        run(config_of(inputs, tmp_path / "out"), backend="ray", address=address)
    # Ray gives up after a minute.
    assert time.monotonic() - started < 30
