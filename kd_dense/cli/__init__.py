"""The command ``kd_dense``: a file for each verb, with a docstring that is its help.

A verb has two functions: ``add_arguments(parser)``, and ``run(args)``, which returns its exit
status or nothing.
"""
