"""The embedded models: small enough to train on the machine at hand, real enough to measure a runtime with."""
