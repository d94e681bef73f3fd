"""`python -m dsvlp`, the same as the console script `dsvlp`."""

from dsvlp.cli.main import main

if __name__ == "__main__":
    main()
