"""The settings of each method, one file per method, which nothing else has to name.

Each file holds ``PRESETS``, of which the first that fits both models is taken, and ``SUMS``: for
each loss whose weights are scaled to other maps, what it sums over a map, weight by weight.
"""
