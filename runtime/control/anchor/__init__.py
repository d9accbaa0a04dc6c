"""A job whose launcher and backup run on a rented machine: how it is begun, asked, and ended from here."""
