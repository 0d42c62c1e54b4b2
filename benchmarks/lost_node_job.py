"""A whole run as a submitted job on a head and two raylets, one of which is killed in the middle of sampling.

    python -m benchmarks.lost_node_job [--log FILE]

Real raylets with addresses of their own on the loopback; the run is a small miniature. Prints the log of the job as
`ray job submit` shows it, with what was done to the cluster between its lines. Exit code 1 unless the job succeeded and
every candidate is there once.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from minos_ray.store.run import Run
from tests.raylets import Raylets, raylet_of, started_raylets

ROOT = Path(__file__).parents[1]
TEST, TRAIN, N_TEST, N_TRAIN, UNIT = 24, 40, 256, 4, 64
SMALL = f"""problems.test.limit={TEST} problems.train.limit={TRAIN} sample.n_test={N_TEST} sample.n_train={N_TRAIN}
sample.unit={UNIT} inserted.count=40 critique.count=60 error_analysis.count=0 reward.rows=120 reward.eval_rows=20
reward.batch_rows=16 reward.verifiers=[prm-minos] sft.batch_rows=16 score.judge=null evaluate.bootstrap=200
resources.sample.units_per_task=2 resources.client.concurrency=8""".split()


class Story:
    """Lines of the job and of what was done to the cluster, with the seconds since the start."""

    def __init__(self) -> None:
        self.start, self.lines = time.monotonic(), list[str]()

    def tell(self, line: str) -> None:
        """Prints and keeps one line."""
        self.lines.append(f"{time.monotonic() - self.start:6.1f} s  {line}")
        print(self.lines[-1], flush=True)

    def follow(self, job: subprocess.Popen[str]) -> None:
        """Tells every line of a job until it ends."""
        assert job.stdout
        for line in job.stdout:
            self.tell(line.rstrip())


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def submit(address: str, path: str) -> subprocess.Popen[str]:
    """`ray job submit` of jobs/pipeline.py; its output is what comes from stdout."""
    line = [Path(sys.executable).parent / "ray", "job", "submit", "--address", address, "--working-dir", "."]
    line += ["--runtime-env", "jobs/runtime_env.yaml", "--", "python", "jobs/pipeline.py", "miniature", f"run={path}"]
    return subprocess.Popen([*line, *SMALL], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def node_of(raylets: Raylets, last: int, path: str) -> Any:
    """A node 127.0.0.LAST with a folder of its own: in a shared one Ray deletes the job's working directory when a node
    unpacks it anew."""
    own = f"{Path(path).parent}/{last}"
    return raylets.add(last, temp_dir=own)


def stored(run: Run) -> int:
    """Candidates on disk."""
    candidates = run.artefact("candidates")
    return sum(candidates.part_footer(name).rows for name in candidates.part_names())


def lose_a_node(raylets: Raylets, node: Any, run: Run, job: subprocess.Popen[str], story: Story) -> None:
    """Waits until a fifth of the candidates are stored, kills the node's raylet, then brings another node."""
    total = TEST * N_TEST + TRAIN * N_TRAIN
    while stored(run) < total / 5 and job.poll() is None:
        time.sleep(0.1)
    pid = raylet_of(node)
    os.kill(pid, signal.SIGKILL)
    story.tell(
        f"--- kill -9 {pid}: the raylet of {node.node_ip_address}; {stored(run):,} of {total:,} candidates stored"
    )
    time.sleep(5)
    new = node_of(raylets, 4, run.path)
    story.tell(f"--- another node: {new.node_ip_address}")


def whole(run: Run) -> bool:
    """Whether every (problem, index) exists exactly once."""
    sizes = {"test": N_TEST, "train": N_TRAIN}
    problems = run.artefact("problems").read().to_pylist()
    wanted = sorted((row["problem_id"], index) for row in problems for index in range(sizes[row["split"]]))
    rows = run.artefact("candidates").read(["problem_id", "index"]).to_pylist()
    return sorted((row["problem_id"], row["index"]) for row in rows) == wanted


def play(raylets: Raylets, path: str, story: Story) -> bool:
    """The job from its submission to its end, with the loss in between; whether it succeeded and lost nothing."""
    nodes = [node_of(raylets, last, path) for last in (2, 3)]
    story.tell("--- a head without CPUs and two nodes of one CPU: 127.0.0.2, 127.0.0.3")
    run = Run(path)
    job = submit(f"http://{raylets.cluster.webui_url}", path)
    reader = threading.Thread(target=story.follow, args=(job,), daemon=True)
    reader.start()
    lose_a_node(raylets, nodes[1], run, job, story)
    reader.join()
    succeeded, complete = job.wait() == 0, whole(run)
    story.tell(f"--- job {'succeeded' if succeeded else 'failed'}; every candidate once: {complete}")
    return succeeded and complete


def main() -> int:
    """Exit code 0 when the job went on after the loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, help="file that gets the log as well")
    log, story = parser.parse_args().log, Story()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.environ.update(PATH=path, RAY_AUTH_MODE="disabled", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    server = {"include_dashboard": True, "dashboard_port": free_port(), "dashboard_agent_listen_port": None}
    with tempfile.TemporaryDirectory() as folder, started_raylets(**server) as raylets:
        done = play(raylets, f"{folder}/run", story)
    if log:
        log.write_text("\n".join([*story.lines, ""]))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
