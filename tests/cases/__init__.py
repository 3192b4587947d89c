"""CONTRACT §5 as data: `*.json` holds cases of facts, time and answers, and `python -m tests.cases DIR` runs them.

A *road* is one way from facts to answers (`roads.py`): through the pure functions, through a database filled with the
rows, row by row in shuffled order.
"""
