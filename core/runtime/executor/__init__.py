"""Plans a graph over devices by their manifests, and runs the plan."""

from runtime.executor.exchange import KeptOutput
from runtime.executor.executor import Executor
from runtime.executor.placement import Fallback, Placement, Placements, place
from runtime.executor.plan import Plan, make_plan
from runtime.executor.selection import check_rules, matches
from runtime.executor.summary import PlacementSummary

__all__ = [
    "Executor",
    "Fallback",
    "KeptOutput",
    "Placement",
    "PlacementSummary",
    "Placements",
    "Plan",
    "check_rules",
    "make_plan",
    "matches",
    "place",
]
