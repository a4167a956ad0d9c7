"""The hidden size cut by a job: what may be asked (`asked.py`, `checks.py`), and the work."""
