"""Looking at folders: what they hold and load with (`inspect`), what they cost to run (`estimate`)."""
