"""The settings of each method, a file for each family, which nothing else has to name.

Each file holds ``METHODS``, by the names that a user types, and ``SUMS``: for each loss whose
weights are scaled to other maps, what it sums over a map, weight by weight.
"""
