"""The pictures of each method, one file per method, which nothing else has to name.

Each file holds ``PICTURES``: for each loss what is drawn of it, and what each place adds to it.
"""
