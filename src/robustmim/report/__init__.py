"""Reports: one self-contained HTML page a run."""
