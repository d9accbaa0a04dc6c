"""The coordinator: votes, generations, plans, and how training goes on after a change."""
