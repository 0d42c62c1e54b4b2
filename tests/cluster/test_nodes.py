"""Nodes that say nothing while a stage starts, and what nodes say of disks and of storage that is not there."""

import json
import subprocess
import sys

from ray import cloudpickle

from minos_ray.cluster import nodes
from minos_ray.cluster.nodes import Answer, Node, disk_findings, settled, storage

NODES = {name: Node(name, f"10.0.0.{at}", {"CPU": 1.0}) for at, name in enumerate("abcd")}


def silent(name: str) -> Answer:
    """A node that said nothing."""
    return Answer(NODES[name], None, "does not answer")


def test_silent_nodes_are_asked_once_more_and_those_that_went_are_left_out() -> None:
    asked: list[list[str]] = []
    there = [{"a", "b", "c"}, {"a", "c"}]  # d goes before the second time, b while it is asked

    def again(nodes: list[Node]) -> list[Answer]:
        asked.append([node.id for node in nodes])
        return [silent("b"), Answer(NODES["c"], {"free": 2})]

    said = [Answer(NODES["a"], {"free": 1}), silent("b"), silent("c"), silent("d")]
    found = settled(said, again, lambda: [NODES[name] for name in there.pop(0)])
    assert asked == [["b", "c"]]
    assert [(answer.node.id, answer.report) for answer in found] == [("a", {"free": 1}), ("c", {"free": 2})]


def test_one_that_stays_and_stays_silent_is_told() -> None:
    found = settled([silent("a")], lambda nodes: [silent("a")], lambda: [NODES["a"]])
    assert found == [silent("a")]


def test_answers_of_nodes_that_left_count() -> None:
    said = [Answer(NODES["a"], {"free": 1})]
    assert settled(said, lambda nodes: [], lambda: []) == said


def test_a_kind_of_storage_that_a_node_does_not_know_is_named() -> None:
    assert (storage("nosuch://bucket/run", "f", "me") or "").startswith("cannot be read there: ")


def test_disks_are_held_against_what_each_node_itself_needs() -> None:
    said = {"free": 3e9, "temporary": "/tmp"}
    trains = Answer(Node("e", "10.0.0.9", {"GPU": 2.0}), said)
    found = list(
        disk_findings([Answer(NODES["a"], said), trains, silent("b")], lambda has: 1e9 + 2e9 * has.get("GPU", 0))
    )
    line = "/tmp has 3.00 GB free, logs, spilled blocks and checkpoints on their way take about 5.00"
    assert found == [("10.0.0.9", f"{line}; free some or set TMPDIR on that node")]


def test_a_node_without_minos_ray_is_asked_too() -> None:
    cloudpickle.register_pickle_by_value(nodes)
    try:
        task = cloudpickle.dumps(nodes.look)
    finally:
        cloudpickle.unregister_pickle_by_value(nodes)
    code = f"""
import importlib.util, json, pickle, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "minos_ray" else find_spec(name)
sys.modules["minos_ray"] = None
print(json.dumps(pickle.loads({task!r})("/nowhere", "f", "me", ["/nowhere"], ["json"], False)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "minos_ray" not in report["versions"] and report["modules"] == {"json": True}
    assert report["models"] == {"/nowhere": "!No such file or directory"}
