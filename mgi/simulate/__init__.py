"""The simulated cohort with its planted truth, and a local GDC that serves it."""
