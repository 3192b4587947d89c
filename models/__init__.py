"""The database: tables, the guarded multi-row upsert, the event ledger and the queries shared by all processes."""
