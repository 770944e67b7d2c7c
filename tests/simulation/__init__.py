"""The seeded simulation: hours of the real daemon against a world that lies, breaks and comes back.

    python -m tests.simulation --seeds 0:5000 [--jobs 2]     many seeds by hand
    python -m tests.simulation --seeds 17 --trace            one seed, all that happened

Everything follows from a seed: `loop` is an event loop whose time is simulated and whose threads
are queues, `world` the truth about cameras and clips, `recorder` and `storage` what the daemon sees
of it and of its stores, `daemon` its life and death, `plan` what is drawn once, `incidents` what
can happen, `script` what does, `invariants` what must hold all the time.
"""
