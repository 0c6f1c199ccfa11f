"""MLflow's model registry: what is promoted into it, through which gate, and how its versions describe themselves."""
