"""`python -m attnlens` is the command `lens`."""

from attnlens.cli import main

if __name__ == "__main__":
    main()
