"""Jobs from their options to a folder: read, work, verify, publish, and go on after an interruption."""
