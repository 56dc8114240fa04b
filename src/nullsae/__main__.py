"""`python -m nullsae`."""

from nullsae.cli.main import main

if __name__ == "__main__":
    main()
