"""The database layer, against the contract and on a real server."""
