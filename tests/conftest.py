"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# Tests run beside one another and on loaded machines: each has a time limit of its own, and an example needs none.
settings.register_profile("paceline", deadline=None)
settings.load_profile("paceline")
