"""``python -m kd_dense``."""

from kd_dense.cli.main import main

if __name__ == '__main__':
    main()
