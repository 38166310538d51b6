"""Training: one engine, many objectives."""
