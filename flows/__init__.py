"""When and where it runs: Prefect, MLflow, processes, the `align` command. No mathematics, no hyperparameter."""
