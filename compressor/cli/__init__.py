"""Commands and options: parsed, called, printed."""
