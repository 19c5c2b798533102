"""What of `models/flow` a user reaches, by which setting or command; and what there is to use from Python alone.

Names count as reached that `pipeline` and `launch` import, and all that these use in turn.
"""

import ast
from functools import cache
from pathlib import Path

from typer.main import get_command

from launch.commands import app
from launch.config import RunConfig
from launch.overrides import records_in

ROOT = Path(__file__).resolve().parents[1]
FLOW = ROOT / "models" / "flow"

# Whoever lets the product use a name of models/flow says here by what users choose or see it.
DOORS = {
    "dit.flow": "spec.FlowSpec objective.matching_loss path.Path path.expand field.Field",
    "dit.flow.path": "path.path_of",
    "dit.flow.tokens": "spec.TokenFlowSpec discrete.TokenPath discrete.masked_source discrete.uniform_source "
    "discrete.token_loss discrete.Logits discrete.sample_tokens",
    "dit.flow.times": "objective.training_times objective.stratified",
    "dit.flow.coupled_clips": "objective.optimal_coupling",
    "dit.flow.given": "given.drawn_frames",
    "distill.map": "spec.FlowMapSpec flow_map.drawn_jumps flow_map.Jump flow_map.jump_target guidance.guide",
    "distill.matching": "spec.DistributionMatchingSpec distribution_matching.simulated_states flow_map.flow_map "
    "distribution_matching.renoised distribution_matching.matching_times distribution_matching.generator_loss",
    "sample.solver": "spec.SolverName spec.JUMPING solver.Solver solver.solver_of solver.dopri5 solver.Counted "
    "solver.Noise flow_map.flow_map_solver flow_map.MeanVelocity distribution_matching.renoising_solver",
    "sample.ddim_eta": "solver.ddim_eta",
    "sample.sde_sigma": "solver.euler_maruyama solver.falling_diffusion",
    "sample.flow_path": "spec.SampledPathName path.sampled_path_of",
    "sample.grid": "grid.uniform_grid grid.karras_grid grid.linear_quadratic_grid grid.euler_scheduler_grid "
    "grid.unipc_scheduler_grid grid.whole_thousandths",
    "sample.shift": "grid.shift_time",
    "sample.schedule": "grid.pyramid grid.autoregressive",
    "sample.prompts": "beginning.Beginning",
    "sample.guidance": "guidance.Guidance guidance.Plain guidance.CfgZeroStar guidance.Rescaled guidance.Apg "
    "guidance.guided guidance.batched",
    "sample.guidance_checkpoint": "guidance.Branches",
    "likelihood": "likelihood.log_likelihood likelihood.probed_divergence likelihood.rademacher "
    "likelihood.bits_per_dimension likelihood.variational_bound solver.invert solver.rk4",
}

FROM_PYTHON = {
    "classifier": "no classifier of noisy clips is trained: a classifier of one's own is needed",
}
"""Modules without a door, and why."""


def imports_of(tree: ast.Module) -> dict[str, str]:
    """Names that a module imports of models/flow, as `module.name` there."""
    return {
        alias.asname or alias.name: f"{node.module.split('.')[2]}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("models.flow.")
        for alias in node.names
    }


@cache
def parsed(folder: Path) -> tuple[tuple[Path, ast.Module], ...]:
    return tuple((file, ast.parse(file.read_text(encoding="utf-8"))) for file in sorted(folder.rglob("*.py")))


@cache
def entrances() -> frozenset[str]:
    """Names of models/flow that the product imports."""
    rooms = (parsed(ROOT / room) for room in ("pipeline", "launch"))
    return frozenset(name for room in rooms for _, tree in room for name in imports_of(tree).values())


@cache
def uses() -> dict[str, set[str]]:
    """Of each name that a module of models/flow defines, the names of models/flow that its definition uses."""
    found = {}
    for file, tree in parsed(FLOW):
        defined: dict[str, ast.stmt] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name] = node
            elif isinstance(node, ast.Assign):
                defined |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        known = imports_of(tree) | {name: f"{file.stem}.{name}" for name in defined}
        for name, node in defined.items():
            used = (part.id for part in ast.walk(node) if isinstance(part, ast.Name))
            found[f"{file.stem}.{name}"] = {known[part] for part in used if part in known}
    return found


def reached() -> set[str]:
    """Names of models/flow that the product uses, directly or by others."""
    found, waiting = set(), list(entrances())
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += uses()[name]
    return found


def is_setting(name: str) -> bool:
    """Whether the configuration of a run has this field."""
    owners: list = [RunConfig]
    for part in name.split("."):
        fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
        if not fields:
            return False
        owners = [record for field in fields for record in records_in(field.annotation)]
    return True


def test_every_name_that_the_product_uses_has_a_door():
    listed = [name for names in DOORS.values() for name in names.split()]
    assert len(set(listed)) == len(listed)
    assert set(listed) == entrances()


def test_every_door_is_a_setting_or_a_command():
    commands = get_command(app).commands.keys()  # pyright: ignore[reportAttributeAccessIssue] - a group has them
    assert [door for door in DOORS if not (is_setting(door) or door in commands)] == []
    assert not is_setting("sample.gone")


def test_what_no_door_leads_to_is_of_modules_that_say_why():
    closed = uses().keys() - reached()
    assert {name.split(".")[0] for name in closed} == FROM_PYTHON.keys()
    assert all(name in closed for name in uses() if name.split(".")[0] in FROM_PYTHON)


def test_every_public_method_is_used_by_the_product():
    """By its name: somewhere in the product an attribute is called so."""
    methods = {
        (file.stem, node.name, method.name)
        for file, tree in parsed(FLOW)
        if file.stem not in FROM_PYTHON
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
    }
    attributes = {
        part.attr
        for room in ("models", "pipeline", "launch")
        for _, tree in parsed(ROOT / room)
        for part in ast.walk(tree)
        if isinstance(part, ast.Attribute)
    }
    assert len(methods) > 40
    assert sorted(".".join(method) for method in methods if method[2] not in attributes) == []
