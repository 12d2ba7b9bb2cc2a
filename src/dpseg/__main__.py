"""`python -m dpseg` is `dpseg`."""

from dpseg.cli import main

if __name__ == "__main__":
    main()
