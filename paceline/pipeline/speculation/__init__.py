"""Pipelined speculation, pure: a drafter and its verifiers never wait for one another.

`Window` goes from the drafter to the verifiers, `Verdict` comes back (`window.py`). Per session there is a
`DrafterCore` at the drafter, a `VerifyScheduler` at the leader, which is the first verifier, and an `Acceptor` at the
last. `simulate.py` drives the same three in virtual time, `search.py` through every order of events; `controller.py`
picks window, depth and hedge width from what `estimate.py` measured.
"""
