"""The command line: its errors, its contracts, its pictures."""
