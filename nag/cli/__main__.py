"""`python -m nag.cli` is `nag`."""

from nag.cli.main import main

if __name__ == "__main__":
    main()
