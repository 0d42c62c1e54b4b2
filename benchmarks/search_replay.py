"""Searches replayed on a run's stored samples and step scores, without a model: seconds where a search takes minutes.

python benchmarks/search_replay.py RUN [--verifiers prm-base prm-minos] [--methods beam dvts lookahead particles]
    [--n 16] [--width 4] [--aggregation min] [--seeds 10]

RUN is a finished demo (`minos demo --out RUN`), or another run whose steps are lines, with many samples of each test
problem. After a prefix a step is drawn by its frequency among the samples that begin with it, and has the score that
the verifier gave it there. So the search is that of `minos_ray.search.beams`, on a generator that writes no more than
the samples hold. Against n samples of the same problem: accuracies and paired differences with 95 % intervals over
problems.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from search import SELECTIONS, Scored, answer, choose

from minos_ray.config.schema import Aggregation, Search
from minos_ray.evaluation.statistics import intervals
from minos_ray.scoring.verifier import aggregate
from minos_ray.search.beams import Beam, ProblemSearch
from minos_ray.steps.split import lines
from minos_ray.store.run import Run


@dataclass
class Samples:
    """Of one problem: its samples, the steps that follow each prefix (empty: it ends there), the scores of prefixes."""

    texts: list[str] = field(default_factory=list)
    steps: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    scores: dict[str, float] = field(default_factory=dict)

    def add(self, text: str, scores: list[float]) -> None:
        """Adds a sample with the score of each of its steps; one whose steps the verifier split otherwise is left."""
        steps = [f"{step}\n" for step in lines(text)]
        if len(steps) != len(scores):
            return
        prefix = ""
        for step, score in zip(steps, scores, strict=True):
            self.steps[prefix].append(step)
            prefix += step
            self.scores[prefix] = score
        self.steps[prefix].append("")
        self.texts.append(prefix)

    def score(self, text: str, aggregation: Aggregation) -> float:
        """The verifier's score of a text."""
        prefix, scores = "", []
        for step in text.splitlines(keepends=True):
            prefix += step
            scores.append(self.scores[prefix])
        return float(aggregate(np.array(scores), np.array([len(scores)]), aggregation)[0])

    def search(self, name: str, settings: Search, aggregation: Aggregation) -> list[str]:
        """The candidates of a search."""
        draw, search = random.Random(f"{name} {settings.seed}"), ProblemSearch(settings, name, Beam())
        while not search.done:
            for slot, beam in list(search.pending.items()):
                step = draw.choice(self.steps[beam.text])
                search.extend(slot, [0], beam.text + step, "" if step else "stop")
            if not search.look_ahead():
                for slot, beam in search.unscored().items():
                    search.rate(slot, replace(beam, score=self.score(beam.text, aggregation)))
                search.select()
        return [search.ended[slot].text for slot in sorted(search.ended)]


def main() -> None:
    """Prints a line for each verifier, method and way to select."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--verifiers", nargs="+", default=["prm-base", "prm-minos"])
    parser.add_argument("--methods", nargs="+", default=["beam", "dvts", "lookahead", "particles"])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--aggregation", default="min")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    run = Run(arguments.run)
    problems = {row["problem_id"]: row for row in run.artefact("problems").read().to_pylist() if row["split"] == "test"}
    for verifier in arguments.verifiers:
        samples = stored(run, verifier, problems)
        sampled = accuracies(problems, samples, None, arguments)
        for method in arguments.methods:
            searched = accuracies(problems, samples, method, arguments)
            for place, selection in enumerate(("one candidate", *SELECTIONS)):
                search_mean, sample_mean = searched[:, place], sampled[:, place]
                columns = np.stack([search_mean, sample_mean, search_mean - sample_mean], axis=1)
                mean, low, high = intervals(columns, 2000, 0)
                print(
                    f"{verifier:10} {method:10} {selection:14} search {mean[0]:.3f}   samples {mean[1]:.3f}   "
                    f"difference {mean[2]:+.3f} [{low[2]:+.3f}, {high[2]:+.3f}]",
                    flush=True,
                )


def stored(run: Run, verifier: str, problems: dict[str, Any]) -> dict[str, Samples]:
    """The samples of each test problem with the scores of a verifier."""
    candidates = run.artefact("candidates").read_where("problem_id", list(problems)).to_pylist()
    texts = {row["candidate_id"]: row["text"] for row in candidates}
    samples: dict[str, Samples] = defaultdict(Samples)
    for row in run.artefact(f"scores/{verifier}").read().to_pylist():
        samples[row["problem_id"]].add(texts[row["candidate_id"]], row["step_scores"] or [])
    return samples


def accuracies(
    problems: dict[str, Any], samples: dict[str, Samples], method: Any, arguments: argparse.Namespace
) -> np.ndarray:
    """[problems, 1 + selections]: how often one candidate and each choice is right, over seeds; no method: samples."""
    right = np.zeros((len(problems), 1 + len(SELECTIONS)))
    for place, (name, problem) in enumerate(problems.items()):
        for seed in range(arguments.seeds):
            if method is None:
                texts = random.Random(f"{name} {seed}").sample(samples[name].texts, arguments.n)
            else:
                settings = Search(method=method, n=arguments.n, width=arguments.width, seed=seed)
                texts = samples[name].search(name, settings, arguments.aggregation)
            candidates: Scored = [(text, samples[name].score(text, arguments.aggregation)) for text in texts]
            right[place, 0] += np.mean([answer(text) == problem["answer"] for text in texts])
            right[place, 1:] += [choose(selection, candidates) == problem["answer"] for selection in SELECTIONS]
    return right / arguments.seeds


if __name__ == "__main__":
    main()
