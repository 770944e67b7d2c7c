"""What nvr-backup costs, next to what else can carry a clip from HTTP into a bucket or a folder.

`python -m benchmarks` (or `make bench`) runs the real command as a process of its own between a
simulated NVR and a storage endpoint that drops what it receives, and other programs through the
same work in turn. Everything is on loopback; docs/performance.md says what came of it.
"""
