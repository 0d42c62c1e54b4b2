"""The tables of a study as Markdown: the primary comparison, the curve, the ablations, the convergence."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minos_ray.config.study import LABEL_ARM

NAMES = {
    "f1": "F1",
    "auc": "AUC",
    "accuracy": "accuracy",
    "step_f1": "first-error F1",
    "best_of_n": "best-of-n",
    "weighted_vote": "weighted vote",
}
# What the tables of arms show; study.json has everything.
SHOWN = ("f1", "step_f1", "weighted_vote")
Answer = Mapping[str, Any]


def statement(answer: Answer) -> str:
    """All tables, in points (per cent) with 95 % intervals over seeds."""
    sample, vote, oracle = (100 * answer["plain"][name] for name in ("one_sample", "self_consistency", "oracle"))
    candidates = f"Of {answer['n']} candidates: one sample {sample:.1f}, vote {vote:.1f}, oracle {oracle:.1f}."
    counts = counts_of(answer)
    curve = head("verifier, measure", *(f"{count:,}" for count in counts), "all minus none", "p (trend)")
    for entry in answer["curves"]:
        means, last = (f"{100 * point['mean']:.1f}" for point in entry["points"]), entry["points"][-1]
        minus = between(last["difference"], last["difference_ci_low"], last["difference_ci_high"])
        p = entry["trend"]["p_trials"]
        curve.append(line(measured(entry), *means, minus, f"{p:.4f}" if p >= 0.0001 else "< .0001"))
    arms = head("arm", "verifier, measure", "mean", "minus base", "minus Minos")
    for entry in answer["arms"]:
        if entry["measure"] in SHOWN:
            differences = (gain(entry[key]) if key in entry else "" for key in ("minus_base", "minus_minos"))
            arms.append(line(title(entry["arm"], counts), measured(entry), f"{100 * entry['mean']:.1f}", *differences))
    versus = head("arms", "verifier, measure", "difference")
    for entry in answer["versus"]:
        if entry["measure"] in SHOWN:
            versus += [line(pair, measured(entry), gain(difference)) for pair, difference in entry["pairs"].items()]
    reached = head("arm", "verifier", "steps to base's final F1, by seed", "of")
    for entry in answer["reached"]:
        steps = ", ".join("never" if step is None else str(step) for step in entry["steps"])
        reached.append(line(title(entry["arm"], counts), entry["kind"].upper(), steps, str(entry["last"])))
    stage_1 = head("arm", "rows of stage 1", "steps", "tokens")
    for entry in answer["stage_1"]:
        amounts = (f"{entry[name]:,.0f}" for name in ("rows", "steps", "tokens"))
        stage_1.append(line(title(entry["arm"], counts), *amounts))
    critics = head("arm", "AUC of the bought critic", "of the refined one", "difference")
    for entry in answer["critics"]:
        means = (f"{100 * entry[name]:.1f}" for name in ("bought", "refined"))
        critics.append(line(title(entry["arm"], counts), *means, gain(entry["refined_minus_bought"])))
    parts = [primary(answer), [candidates], curve, arms, versus, reached, stage_1, *labels(answer["labels"])]
    parts += [critics] if answer["critics"] else []
    return "\n\n".join(map("\n".join, parts)) + "\n"


def primary(answer: Answer) -> Iterator[str]:
    """The comparison that counts, and a second line where another one had been named before the trials."""
    comparison, before = answer["primary"], answer["named"]
    seeds = ", ".join(f"{100 * value:+.1f}" for value in comparison["seeds"])
    name = f"{NAMES[comparison['measure']]} of the {comparison['kind'].upper()}"
    when = "NOT named before" if before["changed"] else "Named before"
    yield f"{when}: {name}, Minos minus base: {gain(comparison)} points over {len(answer['seeds'])} seeds ({seeds})."
    if before["changed"]:
        first = f"{before['primary']['measure']} of {before['primary']['kind']}, seeds {before['seeds']}"
        yield f"Named on {before['time']}: {first}. Changed since: {', '.join(before['changed'])}."


def labels(entries: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Base and Minos over the amounts of labels; how many times Minos' labels and steps base needs, by seed."""
    if not entries:
        return
    curves = head("verifier, measure", "stage 1", *(f"{count:,} labels" for count in entries[0]["amounts"]))
    ratios = head("verifier, measure", "labels of base for one of Minos", "by seed", "steps", "curves apart")
    for entry in entries:
        for side in ("base", "minos"):
            points = [f"{100 * p['mean']:.1f} {ends(p['ci_low'], p['ci_high'])}".strip() for p in entry[side]]
            curves.append(line(measured(entry), side, *points))
        times = [entry["ratio"], entry["steps_ratio"]]
        texts = [
            f"{t['mean']:.2f}" + ("" if t["ci_low"] is None else f" [{t['ci_low']:.2f}, {t['ci_high']:.2f}]")
            for t in times
        ]
        seeds = ", ".join(f"{ratio:.2f}" for ratio in times[0]["seeds"])
        ratios.append(line(measured(entry), texts[0], seeds, texts[1], str(times[0]["bounded"])))
    yield curves
    yield ratios


def title(arm: str, counts: Sequence[int]) -> str:
    """An arm in words: `base`, `750 critiques`, `Minos`, or the name of the ablation."""
    names = {f"critiques-{count:06d}": f"{count:,} critiques" for count in counts}
    names |= {f"critiques-{counts[0]:06d}": "base", f"critiques-{counts[-1]:06d}": f"Minos ({counts[-1]:,} critiques)"}
    if match := LABEL_ARM.fullmatch(arm):
        return f"{match[2]}, {int(match[1]):,} labels"
    return names.get(arm, arm)


def counts_of(answer: Answer) -> list[int]:
    """The amounts of critiques, ascending."""
    return [point["critiques"] for point in answer["curves"][0]["points"]]


def measured(entry: Mapping[str, Any]) -> str:
    """`ORM, F1`."""
    return f"{entry['kind'].upper()}, {NAMES[entry['measure']]}"


def gain(difference: Mapping[str, Any]) -> str:
    """`+3.1 [1.2, 5.0]`, and the interval over problems where there is one."""
    inner = ends(difference.get("problems_low"), difference.get("problems_high"))
    outer = between(difference["mean"], difference["ci_low"], difference["ci_high"])
    return f"{outer} (problems {inner})" if inner else outer


def between(mean: float, low: float | None, high: float | None) -> str:
    """A difference with its interval, in points."""
    return f"{100 * mean:+.1f} {ends(low, high)}".strip()


def ends(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
