"""The method measured: real optimizer steps on the user's model and data against predicted influence."""

from __future__ import annotations

from gradsift.influence_check.check import CheckConfig, InfluenceCheck, InfluenceSettings
from gradsift.influence_check.report import write_influence_report

__all__ = [
    "CheckConfig",
    "InfluenceCheck",
    "InfluenceSettings",
    "write_influence_report",
]
