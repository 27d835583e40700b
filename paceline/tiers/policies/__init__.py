"""Policies: which blocks should lie near the compute. All have one signature."""

from paceline.tiers.policies.policy import ONLINE, ORACLE, POLICIES, Policy, make_policy, policy

__all__ = ["ONLINE", "ORACLE", "POLICIES", "Policy", "make_policy", "policy"]
