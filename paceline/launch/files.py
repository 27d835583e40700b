"""Whether the files that a topology names hold what it needs of them: weights, models, keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from paceline.launch.errors import ArgumentError
from paceline.launch.weights import read_model_file
from paceline.launch.world_tiers import check_world_tiers
from paceline.pipeline.problem import Problem
from paceline.pipeline.schema import choice
from paceline.pipeline.topology import LanguageTopology, Topology

__all__ = ["check_curve", "check_policies", "file_problems"]


def check_curve(topology: Topology) -> None:
    """Raise `ArgumentError` where the CURVE files that a topology names are missing, unfit or open to others."""
    curve = topology.network.curve
    if curve is None:
        return
    # Imported here: most topologies need no keys.
    from paceline.runtime.curve import load_curve
    from paceline.runtime.errors import RendezvousError

    try:
        load_curve(curve)
    except RendezvousError as error:
        raise ArgumentError(str(error)) from error


def check_policies(topology: Topology) -> None:
    """Raise `ArgumentError` where memory tiers name a policy that there is not, or options that it does not take."""
    if not topology.tiers:
        return
    # Imported here: it needs NumPy, and perhaps the packages of others.
    from paceline.tiers.policies import ORACLE, POLICIES, make_policy

    for group, spec in topology.tiers.items():
        online = [name for name in POLICIES.names() if name != ORACLE]
        if spec.policy not in online:
            raise ArgumentError(f"tiers.{group}.policy: is {spec.policy!r}; write {choice(online)}")
        try:
            make_policy(spec.policy, spec.options, {"columns": 1})
        except ValueError as error:
            raise ArgumentError(f"tiers.{group}.options: {error}; write options that the policy takes") from error


def file_problems(topology: Topology) -> Iterator[Problem]:
    """What is wrong with the files of a topology, and with its memory tiers for the models in them."""
    checks: list[Callable[[Any], object]] = [check_curve, check_policies]
    checks += [_check_language] if topology.workload == "language" else [read_model_file, _check_world_tiers]
    for check in checks:
        try:
            check(topology)
        except ArgumentError as error:
            yield _problem(error)
            return


def _check_world_tiers(topology: Topology) -> None:
    """What one session of one frame needs is the least that any run does."""
    check_world_tiers(topology, frames=1, sessions=1)


def _check_language(topology: LanguageTopology) -> None:
    # Imported here: Transformers takes seconds, and other workloads need none.
    from paceline.launch.language.tiers import check_tiers_hold
    from paceline.runtime.language.models import Models
    from paceline.runtime.language.spec import GenerateSpec
    from paceline.stages.lm.folder import ModelFolderError
    from paceline.stages.sampling_params import SamplingParams

    spec = GenerateSpec(topology, ("",), 1, topology.seed, SamplingParams())
    try:
        models = Models.of(spec)
    except ModelFolderError as error:
        raise ArgumentError(f"model: {error}") from error
    check_tiers_hold(spec, models, [1])


def _problem(error: ArgumentError) -> Problem:
    """The message `KEY: what is wrong; what would be right` as a problem of that key."""
    key, _, text = str(error).partition(": ")
    wrong, _, right = text.rpartition("; ")
    return Problem(tuple(key.split(".")), wrong or text, right)
