"""The hard limit on money: `critique.max_usd`."""

from dataclasses import dataclass

from minos_ray.errors import WorkStopped


class StopAtBudget(WorkStopped):
    """`critique.max_usd` is reached; what was bought is kept and a rerun with more money goes on from there."""

    tells_all = True


@dataclass
class Budget:
    """A request reserves the most that it can cost, so that the limit holds with many requests in flight.

    What was asked for and never answered (a timeout, a cut connection, a dead actor) may have been billed: it counts
    as `lost` at the price of the dearest answer so far.
    """

    limit: float | None
    spent: float
    reserved: float = 0.0
    lost: float = 0.0
    dearest: float = 0.0

    def fits(self, usd: float) -> bool:
        """Whether a request that costs at most that much may still be sent."""
        return self.limit is None or self.spent + self.lost + self.reserved + usd <= self.limit

    def reserve(self, usd: float) -> None:
        """Sets the most that a request can cost aside."""
        self.reserved += usd

    def settle(self, reserved: float, spent: float | None) -> None:
        """Gives a reservation back and books what was spent, or what may have been (None)."""
        self.reserved -= reserved
        if spent is None:
            self.lost += min(reserved, self.dearest or reserved)
        else:
            self.spent += spent
            self.dearest = max(self.dearest, spent)
