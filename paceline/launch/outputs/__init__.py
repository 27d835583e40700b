"""What `--out DIR` collects of a run: frames, summary, journal, trace and pictures."""

from paceline.launch.outputs.write import write_outputs

__all__ = ["write_outputs"]
