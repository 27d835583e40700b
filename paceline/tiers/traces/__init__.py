"""Traces of attention: recording, generating, and replaying them under any policy.

`writer.py` records, `trace.py` reads, `format.py` says how they lie in a file. `planted.py` makes traces whose answer
is known. `replay.py` runs policy and planner over one; `oracle.py` and `optimum.py` say what was possible.
"""
