"""What was asked for, as data: options, what they may be, and what they choose between."""
