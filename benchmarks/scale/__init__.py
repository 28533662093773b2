"""What controllers cost as their number and that of the workers grows."""
