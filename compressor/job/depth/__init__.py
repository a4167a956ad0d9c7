"""The part of a job that drops whole blocks: what may be asked (`asked.py`, `checks.py`), and the work."""
