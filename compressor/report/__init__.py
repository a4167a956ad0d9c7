"""What a result says of itself: the model card, the final table, the picture."""
