"""`python -m kquant`: the command `kquant`."""

from kquant.app.cli import main

if __name__ == "__main__":
    main()
