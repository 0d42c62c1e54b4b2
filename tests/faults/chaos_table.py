"""The results of a campaign as tables in Markdown."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from tests.faults.chaos_round import Kill, Report
from tests.faults.world import NODES, STAGES


def markdown(reports: Sequence[Report], seed: int) -> str:
    """A summary by stage and victim, drains beside kills of nodes, what was wrong, and every kill."""
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
    wrongs = [f"- {report.stage}: {line}" for report in bad for line in report.wrong]
    return "\n".join([head, *counted, *wrongs, "", *summary(reports), "", *nodes(kills), *every(reports), ""])


def nodes(kills: Sequence[Kill]) -> list[str]:
    """Of each stage, how long it took to go on after a node was drained, and after one was killed."""
    some = [kill for kill in kills if kill.victim in NODES]
    if not any(kill.victim == "drain" for kill in some):
        return []
    early = sum(kill.early for kill in some)
    lines = [
        f"Seconds until work went on, median. Of the drained nodes {early} ended before their time was over.",
        "",
        "| stage | drains | went on, s | kills | went on, s | ratio | first new: drains, s | kills, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in [*(stage for stage in STAGES if any(kill.stage == stage for kill in some)), "all"]:
        of = {kind: [k for k in some if k.victim == kind and stage in (k.stage, "all")] for kind in sorted(NODES)}
        pauses, firsts = ({kind: middle(of[kind], name) for kind in sorted(NODES)} for name in ("recovery_s", "next_s"))
        ratio = f"{pauses['drain'] / pauses['raylet']:.2f}" if pauses["drain"] and pauses["raylet"] else ""
        cells = [len(of["drain"]), pauses["drain"], len(of["raylet"]), pauses["raylet"], ratio, *firsts.values()]
        lines.append(f"| {stage} | " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return [*lines, ""]


def middle(kills: Sequence[Kill], name: str) -> float | None:
    """The median of one measure, to a tenth; None where there is none."""
    values = [getattr(kill, name) for kill in kills if getattr(kill, name) is not None]
    return round(median(values), 1) if values else None


def summary(reports: Sequence[Report]) -> list[str]:
    """One row for each stage and kind of victim."""
    found: dict[tuple[str, str], list[tuple[Kill, bool]]] = defaultdict(list)
    for report in reports:
        for kill in report.kills:
            found[report.stage, kill.victim].append((kill, not report.wrong))
    lines = [
        "| stage | victim | kills | moments, s | stored, % | went on by itself | by a rerun | lost, made again (most) "
        "| recovery, s | right |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (stage, victim), some in sorted(found.items(), key=lambda one: (list(STAGES).index(one[0][0]), one[0][1])):
        kills = [kill for kill, _ in some]
        alone = sum(kill.outcome == "went on" for kill in kills)
        seconds = [kill.recovery_s for kill in kills if kill.recovery_s is not None]
        took = f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else ""
        lost = f"{sum(kill.lost for kill in kills)} ({max(kill.lost for kill in kills)})"
        moments = f"{min(kill.second for kill in kills):.0f} to {max(kill.second for kill in kills):.0f}"
        shares = f"{min(kill.share for kill in kills):.0%} to {max(kill.share for kill in kills):.0%}"
        numbers = (len(kills), moments, shares.replace("%", ""), alone, len(kills) - alone, lost, took)
        lines.append(f"| {stage} | {victim} | " + " | ".join(map(str, numbers)) + f" | {sum(ok for _, ok in some)} |")
    return lines


def every(reports: Sequence[Report]) -> list[str]:
    """One row for each kill."""
    lines = [
        "| round | stage | victim | at, s | stored, % | outcome | first new, s | recovery, s | lost | end |",
        "|---|---|---|---|---|---|---|---|---|---|",
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
                kill.next_s,
                kill.recovery_s,
                kill.lost,
                end,
            )
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
