"""What a judge has cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from shoal.config.nodes.judge import JudgeConfig

MILLION = 1e6


@dataclass
class Spending:
    """Requests that were replied to, and their tokens as the server counts them (else 4 characters a token)."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, other: Spending) -> None:
        """Adds up."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out

    def dollars(self, options: JudgeConfig) -> float:
        """The cost at the configured prices."""
        return (self.tokens_in * options.price_in + self.tokens_out * options.price_out) / MILLION

    def exhausts(self, options: JudgeConfig) -> bool:
        """Whether the budget is spent."""
        return 0 < options.budget <= self.dollars(options)

    def to_dict(self) -> dict[str, int]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)
