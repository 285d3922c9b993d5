"""`python -m kquant`: the command `kquant`."""

from kquant.cli import main

if __name__ == "__main__":
    main()
