"""What people run: the `dues` command, embedded servers, demo, backup and doctor."""
