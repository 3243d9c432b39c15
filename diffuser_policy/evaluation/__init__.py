"""Evaluate policies: episodes with fixed seeds, statistics with intervals, reports."""

from __future__ import annotations

from diffuser_policy.evaluation.loop import evaluate
from diffuser_policy.evaluation.records import EpisodeRecord, Evaluation, Timing
from diffuser_policy.evaluation.statistics import Interval

__all__ = ["EpisodeRecord", "Evaluation", "Interval", "Timing", "evaluate"]
