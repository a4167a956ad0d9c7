"""From scores to the units that stay: targets, widths that may be written, allocations."""
