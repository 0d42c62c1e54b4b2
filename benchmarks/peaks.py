"""Is the peak of best-of-n predicted, and what does adaptive n save? Simulated verifiers whose truth is known.

python benchmarks/peaks.py [--studies 200] [--problems 400] [--population 1000]

Every study has a verifier of its own, with a known rate of false positives: so often a wrong candidate scores above the
right ones. The true accuracy of best-of-n is integrated from the score distributions of every problem of the
population. A study sees some problems with N candidates each and predicts the n at which best-of-n is best (a power of
two); it is within one power of two of the true one, or not. Then the vote of N is compared with adaptive n.
"""

import argparse

import numpy as np
from scipy.special import ndtr
from simulated import Mixture, mixture

from minos_ray.evaluation.choices import CONFIDENCES, adaptive_votes, ordered, plain_votes
from minos_ray.evaluation.selection import PREDICTED, RIGHT, best_of, predicted_accuracy, ranked
from minos_ray.evaluation.statistics import bounded_intervals

SIZES = (16, 32, 64, 256)
FALSE = (0.001, 0.1)  # rates of false positives, drawn evenly in their logarithm
SCORES = np.linspace(-12, 14, 520)


def true_accuracy(made: Mixture, ns: tuple[int, ...]) -> np.ndarray:
    """[ns]: best-of-n over all problems of the population, candidates without end."""
    right = ndtr(SCORES - made.sharpness - made.liking[:, :1])
    wrong = sum(p * ndtr(SCORES + made.sharpness - made.liking[:, [a + 1]]) for a, p in enumerate(made.popularity))
    above = ndtr((SCORES - made.sharpness - made.lead) / made.width)
    wrong = (1 - made.false_positives) * wrong + made.false_positives * above
    answered, solved = 1 - made.unanswered, made.solved[:, None]
    below = made.unanswered + answered * (solved * right + (1 - solved) * wrong)
    steps = np.diff(below, axis=1)
    share = answered * solved * np.diff(right, axis=1) / np.maximum(steps, 1e-300)
    return np.array([(share * np.diff(below**n, axis=1)).sum(axis=1).mean() for n in ns])


def study(made: Mixture, problems: np.ndarray, rng: np.random.Generator) -> dict[int, tuple[int, int]]:
    """By the number of candidates the predicted peak and the one seen, as places among `PREDICTED`."""
    peaks = {}
    for size in SIZES:
        clusters, scores = made.draw(problems, size, rng)
        precision = ranked(clusters, scores)[RIGHT] / len(problems)
        seen = best_of(scores, clusters, [n for n in PREDICTED if n <= size]).mean(axis=0)
        peaks[size] = int(predicted_accuracy(precision, PREDICTED).argmax()), int(seen.argmax())
    return peaks


def saving(made: Mixture, problems: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """[confidences, problems, 2]: outcome minus that of the vote of all, and the share of its candidates drawn."""
    clusters, _ = made.draw(problems, size, rng)
    vote, stopped = plain_votes(ordered(clusters, [size]))[0], adaptive_votes(clusters)
    return np.stack([stopped.right - vote, stopped.used / size], axis=-1)


def main() -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--population", type=int, default=1000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    truth, peaks, saved = [], [], []
    for _ in range(arguments.studies):
        rate = float(np.exp(rng.uniform(*np.log(FALSE))))
        made = mixture(arguments.population, rng.uniform(0.5, 1.5), rng.uniform(0.2, 1.0), rate, rng)
        truth.append(int(true_accuracy(made, PREDICTED).argmax()))
        problems = rng.integers(arguments.population, size=arguments.problems)
        peaks.append(study(made, problems, rng))
        saved.append(saving(made, problems, SIZES[-1], rng))
    places = np.array(truth)
    print(f"{arguments.studies} studies of {arguments.problems} problems; rates of false positives {FALSE}")
    print("true peaks:", ", ".join(f"{c} at {n}" for n, c in zip(PREDICTED, np.bincount(places), strict=False) if c))
    print("\npeak within one power of two of the true one (%), of these the same, and the mean error in powers of two")
    print(f"{'candidates':>10}  {'predicted':>22}  {'seen':>22}")
    for size in SIZES:
        cells = []
        for way in range(2):
            error = np.array([found[size][way] for found in peaks]) - places
            within, same = 100 * np.mean(np.abs(error) <= 1), 100 * np.mean(error == 0)
            cells.append(f"{within:6.1f} {same:6.1f} {error.mean():+8.2f}")
        print(f"{size:10}  {cells[0]}  {cells[1]}")
    print(f"\nadaptive n against the vote of {SIZES[-1]}, {arguments.studies * arguments.problems:,} problems")
    for k, confidence in enumerate(CONFIDENCES):
        rows = np.concatenate([part[k] for part in saved])
        mean, low, high = bounded_intervals(rows[:, :1], 0, 2000, 0)
        single = [100 * abs(part[k][:, 0].mean()) for part in saved]
        print(
            f"  sure to {confidence:4}: saves {100 * (1 - rows[:, 1].mean()):5.1f} % of the tokens, "
            f"{100 * mean[0]:+.2f} points [{100 * low[0]:.2f}, {100 * high[0]:.2f}]; "
            f"largest difference of one study {max(single):.1f}"
        )


if __name__ == "__main__":
    main()
