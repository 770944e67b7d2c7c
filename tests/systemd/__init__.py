"""The daemon under real systemd, booted in namespaces of its own."""
