"""Everything that happens after an event was stored: snapshots, links, decisions, and the tasks that run them."""
