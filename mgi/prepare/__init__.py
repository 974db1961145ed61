"""Expression and images made ready: one table each, cases paired and split."""
