"""What happens to real processes while something goes wrong: `python -m tests.chaos`."""
