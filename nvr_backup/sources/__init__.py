"""Where clips come from: one module or folder per kind, each a `ports.ClipSource`."""
