"""`python -m loadwise.testing`: the stub upstream alone."""

from loadwise.testing.upstream import main

if __name__ == "__main__":
    main()
