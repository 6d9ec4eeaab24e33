"""Addresses for containers: one universe shared by all peers, divided by a gossiped ring, given out locally."""
