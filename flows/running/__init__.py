"""How the stages of a plan are run: as cached Prefect tasks, each trained in a process of its own, watched and steered.

Read `stages.py` first, then `schedule.py`, `execute.py` and `launch.py`.
"""
