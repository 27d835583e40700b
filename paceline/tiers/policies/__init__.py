"""Policies: which blocks should lie near the compute. One file each, one signature."""

from paceline.tiers.policies.policy import ONLINE, POLICIES, Policy, policy

__all__ = ["ONLINE", "POLICIES", "Policy", "policy"]
