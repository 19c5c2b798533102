"""Rules of the source tree that a machine can check: directions of imports, what loads heavy libraries, no pickle."""

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from testing.paths import ROOT

PACKAGES = ("data", "models", "pipeline", "launch")
MAY_IMPORT = {  # other packages of the project, and heavy libraries that belong to one package
    "data": set(),
    "models": set(),  # and PUBLIC_DATA
    "pipeline": {"data", "models", "ray", "deepspeed"},
    "launch": {"data", "models", "pipeline", "ray"},
}
PUBLIC_DATA = {"data.records", "data.errors", "data.dataset.compression"}  # records that `models` share with `data`
ORDER = (  # of the packages of `pipeline`: each imports only from those in the rows above its own
    ("run",),
    ("distributed",),
    ("engine",),
    ("checkpoint",),
    ("report",),
    ("ingest", "encode"),
    ("sample",),
    ("train",),
    ("evaluate",),
)
ROW = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
DECODERS = ("av", "decord")
HEAVY = ("torch", "torch._dynamo", "ray", "deepspeed", "transformers", *DECODERS)  # _dynamo: of torch.compile


def sources(folder: Path) -> list[Path]:
    """Every module below a folder; at least one, so that a renamed folder fails a test instead of emptying it."""
    found = sorted(folder.rglob("*.py"))
    assert found, f"there are no modules in {folder}"
    return found


def modules_of(path: Path) -> Iterator[str]:
    """The full name of each module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    """The first part of each of those names."""
    return {name.split(".")[0] for name in modules_of(path)}


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that are in memory once a new process has run `code`."""
    report = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules], sep='\\n', file=sys.stderr)"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    watched = {*PACKAGES, "ray", "deepspeed"}
    for path in sources(ROOT / package):
        foreign = (imports_of(path) & watched) - {package} - MAY_IMPORT[package]
        if package == "models":
            public = {name for name in modules_of(path) if name.split(".")[0] == "data"}
            hidden = {name for name in public if not any(f"{name}.".startswith(f"{one}.") for one in PUBLIC_DATA)}
            assert not hidden, f"{path.relative_to(ROOT)} imports {sorted(hidden)}"
            foreign -= {"data"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_the_packages_of_pipeline_are_those_of_the_order():
    folders = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert folders == set(ROW)
    assert len(folders) <= 10
    assert {path.name for path in (ROOT / "pipeline").glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("room", ROW)
def test_no_package_of_pipeline_imports_from_one_above_it(room):
    """Rows are in order, so this also excludes circles of imports."""
    for path in sources(ROOT / "pipeline" / room):
        others = {name.split(".")[1] for name in modules_of(path) if name.startswith("pipeline.")} - {room}
        upwards = sorted(other for other in others if ROW[other] >= ROW[room])
        assert not upwards, f"{path.relative_to(ROOT)} imports from {upwards}"


def test_configurations_load_nothing_heavy():
    """A process of its own for each `config.py`: only records, so that a configuration is read in a moment."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("config.py"))
    assert len(paths) >= 10
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    # One process first, since all of them together load nothing; only if they do, one each, to name the culprit.
    if together := loaded_by("import " + ", ".join(names)):
        assert {name: heavy for name in names if (heavy := loaded_by(f"import {name}"))} == {}, together


def test_a_plan_loads_nothing_heavy(tmp_path):
    code = f"""
import sys
sys.argv = ["reelflow", "demo", "--dry-run", "--set", "runs_dir={tmp_path}"]
from launch.__main__ import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""
    assert loaded_by(code) == set()


def test_sampling_from_noise_loads_neither_ray_nor_deepspeed_nor_a_decoder_nor_the_compiler():
    assert loaded_by("import pipeline.sample.latents") == {"torch"}


def test_actors_that_encode_sample_and_measure_and_the_optimizer_do_not_load_the_compiler():
    """It takes as long to load as all of torch, in each process of each actor and each worker."""
    code = """
import pipeline.encode.encode, pipeline.sample.job, pipeline.evaluate.measure
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.meta import on_meta_device
from models.networks.build import build_network
from models.networks.config import DiTConfig, UNetConfig, WanConfig
with on_meta_device():
    build_autoencoder(AutoencoderConfig())
    configs = (DiTConfig(), UNetConfig(architecture="unet"), WanConfig(architecture="wan"))
    networks = [build_network(config, 4, 64) for config in configs]
assert all(parameter.is_meta for network in networks for parameter in network.parameters())

import torch
from pipeline.engine.parameter_groups import AdamWByTurns, ParameterGroup, optimizer_groups
linear = torch.nn.Linear(2, 2)
adam = AdamWByTurns(optimizer_groups(linear, [ParameterGroup(0.1, (0.9, 0.99))]), lr=1.0, fused=True)
linear(torch.ones(1, 2)).sum().backward()
adam.step()
adam.zero_grad()
adam.load_state_dict(adam.state_dict())
"""
    assert loaded_by(code) & {"torch", "torch._dynamo", "deepspeed", "transformers"} == {"torch"}


@pytest.mark.parametrize(
    ("room", "private"),
    [
        (
            "networks",
            {
                *("DiT", "DiTConfig", "DiTBlock", "Wan", "WanConfig", "WanBlock"),
                *("UNet", "UNetConfig", "ConvolutionBlock", "MidBlock"),
            },
        ),
        ("autoencoder", {"Autoencoder", "WanAutoencoder"}),
    ],
)
def test_only_its_own_package_names_an_architecture(room, private):
    """Everything else builds a network from its configuration, and uses what its base class offers."""
    for package in PACKAGES:
        for path in sources(ROOT / package):
            if ROOT / "models" / room in path.parents:
                continue
            with path.open("rb") as file:
                names = {token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME}
            assert not names & private, path.relative_to(ROOT)


def test_only_the_cluster_module_starts_ray():
    callers = [
        path.name
        for package in PACKAGES
        for path in sources(ROOT / package)
        if "ray.init(" in path.read_text(encoding="utf-8")
    ]
    assert callers == ["cluster.py"]


def test_only_one_function_sets_threads_and_the_library_of_products():
    """Processes whose results are compared to the bit choose the same: each calls `prepare_to_compute`."""
    for call in ("set_num_threads(", "set_float32_matmul_precision("):
        callers = [
            path.name
            for package in PACKAGES
            for path in sources(ROOT / package)
            if call in path.read_text(encoding="utf-8")
        ]
        assert callers == ["precision.py"]


def test_nothing_is_unpickled():
    """Files hold tensors, JSON and video: torch.load appears nowhere, and pickle only between processes of a run."""
    between_processes = {ROOT / "pipeline" / "distributed" / "isolated_worker.py"}
    found = set()
    for package in PACKAGES:
        for path in sources(ROOT / package):
            text = path.read_text(encoding="utf-8")
            assert "torch.load(" not in text, path
            if "pickle" in imports_of(path):
                found.add(path)
                assert "open(" not in text, path
    assert found == between_processes


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys, launch.commands; print([m for m in ('torch', 'ray', 'deepspeed') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_gitignore_does_not_hide_the_packages():
    """Ray honours .gitignore when it ships the code: a package listed there vanishes from the cluster."""
    hidden = subprocess.run(
        ["git", "check-ignore", *[f"{package}/__init__.py" for package in PACKAGES]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert hidden.stdout == ""
