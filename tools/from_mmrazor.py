"""``kd_dense from-mmrazor`` as a file, for habits and launchers."""

from kd_dense.cli.main import main

if __name__ == '__main__':
    main('from-mmrazor')
