"""What people trigger and schedule in Prefect's pages: a form for each method, retraining, what a run may do."""
