"""Whole blocks dropped by a job: what may be asked (`asked.py`, `checks.py`), and the work."""
