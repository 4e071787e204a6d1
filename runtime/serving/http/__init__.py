"""A bundle behind HTTP: a small API, and one page to look at. Needs the extra ``serve``."""
