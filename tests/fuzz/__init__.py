"""Hostile bytes for the receiver, mutated events for the handlers; more of both under `make fuzz`."""
