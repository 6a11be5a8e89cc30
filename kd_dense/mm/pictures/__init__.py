"""Draw what models find in a picture, what each loss looks at, and where they still differ.

All functions that draw return matplotlib figures that belong to no window. ``observe`` and
``hook`` can be imported without matplotlib, the other files not.
"""
