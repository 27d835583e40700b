"""What `--out DIR` collects of a run: frames, summary, journal, trace and pictures."""
