"""The engine's flags for vision adapters: what they make room for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_plugin.adapter_export import export_adapter
from model_plugin.errors import CheckpointError, ConfigError
from tests.model_plugin.engine.harness import needs_vllm
from tests.model_plugin.test_adapters import write_run

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return export_adapter(write_run(folder / "run"), folder / "adapter").folder


def test_room_is_made_for_what_is_given(adapter: Path) -> None:
    from model_plugin.engine.adapters.flags import split_flags, vllm_flags
    from model_plugin.engine.adapters.settings import HostLimits

    given = ["--vision-adapter", f"a={adapter}", "--max-model-len", "99", "--model", "m"]
    host, rest = split_flags(given)
    assert host is not None
    assert rest == ["--max-model-len", "99", "--model", "m"]
    assert dict(host.adapters) == {"a": adapter}
    assert host.limits == HostLimits(adapters=4, rank=8, image_tokens=64)
    assert "--max-loras 4 --max-cpu-loras 4" in " ".join(vllm_flags(host.limits))
    more = ["--max-adapters", "9", "--adapter-rank", "256", "--adapter-image-tokens", "500"]
    host, _ = split_flags([*given, *more])
    assert host is not None
    assert host.limits == HostLimits(adapters=9, rank=256, image_tokens=500)
    host, _ = split_flags(["--adapters-folder", str(adapter.parent)])
    assert host is not None
    assert (host.limits.rank, host.limits.adapters) == (64, 4)
    assert split_flags(["--max-model-len", "9"]) == (None, ["--max-model-len", "9"])


def test_what_does_not_fit_is_refused(adapter: Path, tmp_path: Path) -> None:
    from model_plugin.engine.adapters.flags import split_flags

    one = ["--vision-adapter", f"a={adapter}"]
    for arguments, said in (
        (["--vision-adapter", str(adapter)], "takes NAME=PATH"),
        (["--vision-adapter", f"a/b={adapter}"], "takes NAME=PATH"),
        ([*one, *one], "Two vision adapters are called a"),
        ([*one, "--max-adapters", "0"], "no room for 1"),
        ([*one, "--adapter-rank", "100"], "not one of vLLM's"),
        ([*one, "--adapter-image-tokens", "10"], "less than the 64 tokens"),
        (["--adapters-folder", str(tmp_path / "none")], "is not a directory"),
        (["--max-adapters", "4"], "goes with --vision-adapter"),
    ):
        with pytest.raises(ConfigError, match=said):
            split_flags(arguments)
    with pytest.raises(CheckpointError, match="is not a vision adapter"):
        split_flags(["--vision-adapter", f"a={tmp_path}"])
    high = {"lora": {"r": 600, "layers": 1, "target_modules": ["mlp.up_proj"]}}
    much = export_adapter(write_run(tmp_path / "run", config=high), tmp_path / "much").folder
    with pytest.raises(ConfigError, match=r"rank 600; .* up to 512\. Truncate it .* or merge it"):
        split_flags(["--vision-adapter", f"a={much}"])
