"""`python -m nvr_backup` is `nvr-backup`."""

from nvr_backup.cli import main

if __name__ == "__main__":
    main()
