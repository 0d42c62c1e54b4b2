"""The results of a campaign as tables in Markdown."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from tests.faults.chaos_round import Kill, Report
from tests.faults.world import STAGES


def markdown(reports: Sequence[Report], seed: int) -> str:
    """A summary by stage and victim, what was wrong, and every kill."""
    kills = [kill for report in reports for kill in report.kills]
    bad = [report for report in reports if report.wrong]
    lost = sum(len(report.kills) for report in bad)
    head = f"{len(kills)} kills in {len(reports)} rounds (seed {seed}): {len(kills) - lost} recoveries, {lost} not."
    counted = [
        f"Commands: {sum(report.starts for report in reports)}, of which reruns "
        f"{sum(report.starts - 1 for report in reports)}.",
        f"Kills after the last row, answer or step was stored: {sum(kill.share >= 1 for kill in kills)}.",
        f"Answers bought twice (in flight at a kill): {sum(report.bought_twice for report in reports)}.",
        f"Workers of killed raylets that did not end (stuck): {sum(report.stuck for report in reports)}.",
        f"Files that a killed process was writing (*.tmp): {sum(report.temporary_files for report in reports)}.",
    ]
    counted += drains(kills)
    wrongs = [f"- {report.stage}: {line}" for report in bad for line in report.wrong]
    return "\n".join([head, *counted, *wrongs, "", *summary(reports), "", *every(reports), ""])


def drains(kills: Sequence[Kill]) -> list[str]:
    """What drained nodes cost, beside nodes that were killed."""
    drained = [kill for kill in kills if kill.victim == "drain"]
    pauses = {
        name: [kill.recovery_s for kill in kills if kill.victim == name and kill.recovery_s is not None]
        for name in ("drain", "raylet")
    }
    if not drained:
        return []
    early, lost = sum(kill.early for kill in drained), max(kill.lost for kill in drained)
    medians = [f"{name} {median(values):.1f} s" for name, values in pauses.items() if values]
    return [
        f"Drains: {len(drained)}, after {early} of which the node ended before its time was over; at most {lost} rows "
        f"or steps lost. Seconds until work went on, median: {', '.join(medians)}."
    ]


def summary(reports: Sequence[Report]) -> list[str]:
    """One row for each stage and kind of victim."""
    found: dict[tuple[str, str], list[tuple[Kill, bool]]] = defaultdict(list)
    for report in reports:
        for kill in report.kills:
            found[report.stage, kill.victim].append((kill, not report.wrong))
    lines = [
        "| stage | victim | kills | moments, s | stored, % | went on by itself | by a rerun | recovery, s | right |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (stage, victim), some in sorted(found.items(), key=lambda one: (list(STAGES).index(one[0][0]), one[0][1])):
        kills = [kill for kill, _ in some]
        alone = sum(kill.outcome == "went on" for kill in kills)
        seconds = [kill.recovery_s for kill in kills if kill.recovery_s is not None]
        took = f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""
        moments = f"{min(kill.second for kill in kills):.0f} to {max(kill.second for kill in kills):.0f}"
        shares = f"{min(kill.share for kill in kills):.0%} to {max(kill.share for kill in kills):.0%}"
        numbers = (len(kills), moments, shares.replace("%", ""), alone, len(kills) - alone, took)
        lines.append(f"| {stage} | {victim} | " + " | ".join(map(str, numbers)) + f" | {sum(ok for _, ok in some)} |")
    return lines


def every(reports: Sequence[Report]) -> list[str]:
    """One row for each kill."""
    lines = [
        "| round | stage | victim | at, s | stored, % | outcome | recovery, s | end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, report in enumerate(reports):
        end = "wrong" if report.wrong else "as the reference"
        for kill in report.kills:
            cells = (
                number,
                kill.stage,
                kill.victim,
                kill.second,
                f"{100 * kill.share:.0f}",
                kill.outcome,
                kill.recovery_s,
                end,
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
