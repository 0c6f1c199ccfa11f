"""The memory of a stage before it runs, in closed form: no torch, no weights."""
