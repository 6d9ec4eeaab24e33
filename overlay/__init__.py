"""Frames and where they go: MAC table, forwarding decisions, the switch between data paths."""
