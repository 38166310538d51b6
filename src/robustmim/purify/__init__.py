"""Purifiers: AMRM-Pure, and what every purifier is."""
