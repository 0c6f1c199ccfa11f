"""Evaluated policies, compared: pure, but for reading reports and the store.

policies.py        a policy's report and completions, with what follows from the completions alone
held_out.py        what it was measured on; which reports can be compared
lineage.py         the stages that made it, from the store's manifests: their costs, what they needed
stability.py       how its training went: spikes, alarms, early ends
methods.py         policies that differ in the seed alone, as one method
significance.py    tests and intervals
pairs.py           methods in pairs, prompt by prompt
conclusions.py     what can be said of it, and what can't, in sentences
comparison.py      all of these for one list of policies
tables.py, charts.py, frontier.py, side_by_side.py, page.py: shown
"""
