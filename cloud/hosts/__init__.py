"""Machines that one already has, reached over SSH: nothing is rented, some are up and some are not."""
