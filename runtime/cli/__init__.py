"""The command ``denseport``: commands parse, call and print. May import all of `runtime`."""
