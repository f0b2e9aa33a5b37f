"""A simulator on paper: what a fleet needs for a traffic mix and a service level."""

from loadtest.plan.fleet import Hardware, Mix, plan_fleet
from loadtest.plan.simulate import Cost, Engine, Request, simulate

__all__ = ["Cost", "Engine", "Hardware", "Mix", "Request", "plan_fleet", "simulate"]
