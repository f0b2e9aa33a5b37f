"""Servers that are measured: starting them, watching their processes, reading their metrics."""

from loadtest.servers.processes import Used, watch
from loadtest.servers.scrape import Sums, means_between, scrape
from loadtest.servers.server import Server
from loadtest.servers.target import Target

__all__ = ["Server", "Sums", "Target", "Used", "means_between", "scrape", "watch"]
