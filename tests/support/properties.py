"""Hypothesis, without its deadline: real time is not what these tests test."""

from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

__all__ = ["given", "settings", "st"]
