"""Verbs: what one stage does. No Prefect, no MLflow, no stage that knows another."""
