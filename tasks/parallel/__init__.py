"""A training stage in several processes: how they start and end, which rows each has, what they tell each other."""
