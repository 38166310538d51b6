"""Evaluation: per-sample records, intervals, claims."""
