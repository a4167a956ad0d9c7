"""A sweep: many results of one source, which share what they can, in one folder with one table."""
