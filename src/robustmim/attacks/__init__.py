"""Attacks: one file each, one signature."""
