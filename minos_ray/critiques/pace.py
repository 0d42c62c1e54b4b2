"""A rate held by spacing: no burst at the start, and time that was not used is lost after a moment."""

USED = 0.97
"""Share of an allowed rate that is asked for: endpoints count at their own door, some milliseconds off ours."""
SLACK_S = 0.5
"""So much unused time may be caught up with, but not what passed before the first start."""


class Pace:
    """The generic cell rate algorithm (ITU-T I.371): amounts per minute, each start known when it is granted."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self.per_second = per_minute * USED / 60 if per_minute else None
        self.free_at = now
        self.begun = False

    def start(self, now: float) -> float:
        """The moment at which the next amount may start."""
        return max(now, self.free_at)

    def take(self, amount: float, start: float) -> None:
        """Books an amount that starts then."""
        if self.per_second:
            earliest = start - SLACK_S if self.begun else start
            self.free_at, self.begun = max(self.free_at, earliest) + amount / self.per_second, True

    def correct(self, amount: float) -> None:
        """Books what an amount turned out to be more (or less) than was taken."""
        if self.per_second:
            self.free_at += amount / self.per_second

    def pause(self, until: float) -> None:
        """Nothing starts before that moment, and nothing is caught up with after it."""
        self.free_at = max(self.free_at, until)
