"""Writing a checkpoint folder that stock loaders read."""
