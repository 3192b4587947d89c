"""Migrations, up and down, with data in the tables."""
