"""Engines: their connections, health and choice."""

from vora_serve.gateway.upstreams.balancer import Balancer
from vora_serve.gateway.upstreams.health import HealthMonitor
from vora_serve.gateway.upstreams.upstream import Exchange, Upstream

__all__ = ["Balancer", "Exchange", "HealthMonitor", "Upstream"]
