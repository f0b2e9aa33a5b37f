"""Samples that a run passes over: how many, why, and when there are too many of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from vora_serve.training.data_recipe import Data
from vora_serve.training.labels import SampleError

#: Not a fault of the data: counted, and no reason to stop.
TOO_LONG = "too long"
#: A share says something only of so many samples.
_FEW = 1000


@dataclass
class Skipped:
    """Samples that a shard has read and passed over.

    Attributes:
        seen: samples read.
        reasons: how many were passed over, by kind of reason.
        fresh: name, kind and sentence of those that were not reported yet.
    """

    seen: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    fresh: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many were passed over."""
        return self.reasons.total()

    def add(self, name: str, error: SampleError) -> None:
        """Count a sample in that is passed over."""
        self.reasons[error.kind] += 1
        self.fresh.append((name, error.kind, str(error)))

    def report(self) -> list[tuple[str, str, str]]:
        """Those that were not reported before."""
        fresh, self.fresh = self.fresh, []
        return fresh


def broken(reasons: Mapping[str, int]) -> int:
    """Samples that were passed over for a fault of theirs."""
    return sum(count for kind, count in reasons.items() if kind != TOO_LONG)


def too_many(reasons: Mapping[str, int], seen: int, data: Data) -> str | None:
    """Why a run is to stop because of its skipped samples; None where it may go on.

    Args:
        reasons: how many were passed over, by kind of reason.
        seen: samples read.
        data: the recipe's section, whose limits count.
    """
    share = data.skipped_share
    limit = max(data.max_skipped, int(share * max(seen, _FEW)))
    count = broken(reasons)
    if count <= limit:
        return None
    kinds = ", ".join(f"{kind}: {n}" for kind, n in sorted(reasons.items(), key=lambda i: -i[1]))
    allowed = f"max_skipped ({data.max_skipped})"
    if share:
        allowed += f" and max_skipped_share ({share:g}) allow"
    else:
        allowed += " allows"
    return f"{count} of {seen} samples were skipped ({kinds}), more than {allowed}"
