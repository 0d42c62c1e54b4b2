"""The hard limit on money: `critique.max_usd`."""

import asyncio
from dataclasses import dataclass, field

from minos_ray.errors import WorkStopped


class StopAtBudget(WorkStopped):
    """`critique.max_usd` is reached; what was bought is kept and a rerun with more money goes on from there."""


@dataclass
class Budget:
    """A request reserves the most that it can cost, so that the limit holds with many requests in flight."""

    limit: float | None
    spent: float
    reserved: float = 0.0
    in_flight: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def reserve(self, usd: float) -> None:
        """Waits while what is in flight may turn out cheaper than reserved; StopAtBudget when it cannot."""
        async with self.changed:
            await self.changed.wait_for(lambda: self._fits(usd) or not self.in_flight)
            if not self._fits(usd):
                raise StopAtBudget(
                    f"critique.max_usd = {self.limit}: stopped at {self.spent:.4f} USD, the next request may cost "
                    f"{usd:.4f}; what was bought is kept: raise critique.max_usd and run again"
                )
            self.reserved += usd
            self.in_flight += 1

    def _fits(self, usd: float) -> bool:
        return self.limit is None or self.spent + self.reserved + usd <= self.limit

    async def settle(self, reserved: float, spent: float) -> None:
        """Gives a reservation back and books what was really spent."""
        async with self.changed:
            self.in_flight -= 1
            self.reserved = self.reserved - reserved if self.in_flight else 0.0
            self.spent += spent
            self.changed.notify_all()
