"""``kd_dense train`` as a file, for habits and launchers."""

from kd_dense.cli.main import main

if __name__ == '__main__':
    main('train')
