"""The tiny simulated cohort."""

from tests.cohorts import cohort, manifest, no_waiting, own_cohort

__all__ = ["cohort", "manifest", "no_waiting", "own_cohort"]
