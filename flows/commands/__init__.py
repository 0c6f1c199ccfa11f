"""The verbs of the `align` command, but for those of the servers: what each does, and what it prints."""
