"""What the sections of the settings share: strictness, and types with units."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _network(value: str) -> str:
    return str(ipaddress.ip_network(value, strict=False))


Cidr = Annotated[str, AfterValidator(_network)]


class Section(BaseModel):
    """A branch of the settings tree; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
