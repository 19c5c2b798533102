"""Names inside DeepSpeed are used in one file, with the versions that were tested."""

import re

import pytest

from data.errors import ReelflowError
from pipeline.engine import deepspeed_internals
from pipeline.engine.deepspeed_internals import SUPPORTED_VERSIONS, check_version, import_deepspeed
from testing.paths import ROOT

PRIVATE_NAMES = re.compile(
    r"single_partition_of_fp32_groups|fp32_partitioned_groups_flat|bit16_groups|fp16_groups|_hp_mapping"
    r"|hp_fragment_address|averaged_gradients|\bds_numel|partition_numel|_partition_all_parameters"
    r"|_reassign_or_swap_out_partitioned_parameters|\bpersistent_parameters|update_lp_params|override_loss_scale"
    r"|\.data_parallel_group|seq_data_parallel_group|_set_pg_timeout|build_shm_op|muon|DynamicLossScaler\("
    r"|deepspeed\.runtime|deepspeed\.utils|zero\.Init|ds_shape|_convert_to_deepspeed_param|\.partition\(\)"
)


def test_no_other_file_uses_a_name_inside_deepspeed():
    files = [path for room in ("data", "models", "pipeline", "launch") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    using = {path.relative_to(ROOT).as_posix() for path in files if PRIVATE_NAMES.search(path.read_text())}
    assert using == {"pipeline/engine/deepspeed_internals.py"}


@pytest.mark.parametrize("version", ["0.19.8", "0.19.9", "0.19.12+cu128"])
def test_a_tested_version_is_accepted(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.19.7", "0.18.9", "0.20.0", "0.20", "1.0.0"])
def test_another_version_is_refused(version, monkeypatch):
    monkeypatch.setattr(deepspeed_internals, "version", lambda name: version)
    with pytest.raises(ReelflowError, match=rf"DeepSpeed {version} is installed.*pip install 'deepspeed>=0\.19\.8"):
        import_deepspeed()


def test_the_tested_versions_are_those_the_package_requires():
    assert f'"deepspeed{SUPPORTED_VERSIONS}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    check_version(re.findall(r"[\d.]+", SUPPORTED_VERSIONS)[0])
    with pytest.raises(ReelflowError):
        check_version(re.findall(r"[\d.]+", SUPPORTED_VERSIONS)[1])
