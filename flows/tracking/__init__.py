"""What MLflow shows of a run: made from what the run's folders hold, sent while it goes on or later, and fetched back.

Read `tracker.py` first, then `tracked_run.py` and `tracked_stage.py`.
"""
