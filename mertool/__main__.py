"""`python -m mertool` is the command `mertool`."""

from mertool.cli import main

if __name__ == "__main__":
    main()
