"""Programs that stand in for the daemon's in a test's machine: the product with one thing broken.

They are copied into the machine and run by a drop-in; nothing of the product knows of them. Each is
told what to do when by files in /run/nvr-backup.
"""
