"""The parts of docs/results.md, one file each."""
