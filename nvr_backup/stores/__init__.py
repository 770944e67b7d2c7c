"""Where objects go: one module or folder per kind, each a `ports.ClipStore`."""
