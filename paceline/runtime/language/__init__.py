"""Runs language workloads: drafter and verifiers as workers of their own."""
