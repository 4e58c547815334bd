# SAELens reads the releases of others, from the hub. Here its loaders are handed our
# files instead of downloads: what they make of the keys is held against ours.
"""Files of the releases that SAELens knows, against what SAELens makes of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.sae_formats import load_sae
from tests.contract.sae_checkpoints import D_IN, D_SAE, save_tensors, weights
from tests.contract.sae_files import FILES
from tests.contract.sae_folders import FOLDERS
from tests.contract.test_native_libraries import assert_same, native

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """
    One of our cases, as SAELens knows it.

    Attributes:
        loader: The function of its module.

        repo: Of the release; some facts are in its name.

        folder: What it calls the SAE.

        under: Where in the repository the case is written.

        overrides: What it looks up by the name of a real release.

        scale: What its table of releases says of this one.
    """

    loader: str
    repo: str
    folder: str
    under: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None


SIZES = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
GEMMA = "google/gemma-scope-2b-pt-res"
R1 = "fnlp/Llama-Scope-R1-Distill"
QWEN = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_30"
GOODFIRE = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"

RELEASES = {
    "gemma-scope": Release(
        loader="gemma_2_sae_huggingface_loader",
        repo=GEMMA,
        folder="layer_3/width_16k",
        under="layer_3/width_16k",
        overrides=SIZES,
    ),
    "gemma-scope-embedding": Release(
        loader="gemma_2_sae_huggingface_loader",
        repo=GEMMA,
        folder="embedding/width_4k",
        under="embedding/width_4k",
        overrides=SIZES,
    ),
    "gemma-scope-transcoder": Release(
        loader="gemma_2_transcoder_huggingface_loader",
        repo="google/gemma-scope-2b-pt-transcoders",
        folder="layer_3/width_16k",
        under="layer_3/width_16k",
        overrides=SIZES | {"d_out": D_IN},
    ),
    "gemma-scope-2": Release(
        loader="gemma_3_sae_huggingface_loader",
        repo="google/gemma-scope-2-1b-pt",
        folder="resid_post/layer_3_width_16k",
        under="resid_post/layer_3_width_16k",
    ),
    "gemma-scope-2-transcoder": Release(
        loader="gemma_3_sae_huggingface_loader",
        repo="google/gemma-scope-2-1b-pt",
        folder="transcoder/layer_3_width_16k",
        under="transcoder/layer_3_width_16k",
    ),
    "gemma-scope-2-clt": Release(
        loader="gemma_3_sae_huggingface_loader",
        repo="google/gemma-scope-2-1b-pt",
        folder="clt/layer_3",
        under="clt",
    ),
    "llama-scope": Release(
        loader="llama_scope_sae_huggingface_loader",
        repo="fnlp/Llama3_1-8B-Base-LXR-8x",
        folder="L3R",
        under="L3R",
        overrides={"dtype": "float32"},
        scale=float(np.sqrt(D_IN) / 2.5),
    ),
    "llama-scope-r1": Release(
        loader="llama_scope_r1_distill_sae_huggingface_loader",
        repo=R1,
        folder="L3R",
        under="L3R",
        scale=2.5,
    ),
    "qwen-scope": Release(
        loader="qwen_scope_sae_huggingface_loader",
        repo=QWEN,
        folder="layer3.sae.pt",
        overrides=SIZES,
    ),
    "goodfire": Release(
        loader="get_goodfire_huggingface_loader",
        repo=GOODFIRE,
        folder="Llama-3.1-8B-Instruct-SAE-l19.pth",
        overrides=SIZES,
    ),
    "deepseek-r1": Release(
        loader="deepseek_r1_sae_huggingface_loader",
        repo="OpenMOSS-Team/x",
        folder="sae-l3.pt",
        overrides=SIZES,
    ),
    "cross-layer": Release(
        loader="mntss_clt_layer_huggingface_loader", repo="mntss/clt-x", folder="3"
    ),
}


@pytest.mark.parametrize(("name", "release"), RELEASES.items(), ids=RELEASES)
def test_sae_lens_makes_the_same_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, release: Release
) -> None:
    """
    The files of a release encode as they do once SAELens has converted them.
    """
    loaders = native("sae_lens.loading.pretrained_sae_loaders", "sae-lens")
    saes = native("sae_lens.saes.sae", "sae-lens")
    torch = native("torch", "torch")
    case = (FOLDERS | FILES)[name]
    root = tmp_path / "repo"
    (root / release.under).parent.mkdir(parents=True, exist_ok=True)
    path, _ = case.write(root / release.under)
    path = _as_published(path, root, name, release)
    serve(monkeypatch, loaders, root)

    overrides = {"device": "cpu", **release.overrides}
    config, state, _ = getattr(loaders, release.loader)(
        release.repo, release.folder, "cpu", False, overrides
    )

    config = loaders.handle_config_defaulting(config)
    sae_config = saes.SAEConfig.from_dict(config)
    sae = saes.SAE.get_sae_class_for_architecture(sae_config.architecture())(sae_config)
    sae.load_state_dict(state)
    if release.scale is not None:
        sae.fold_activation_norm_scaling_factor(release.scale)
    x = weights(200, D_IN, seed=20) * np.float32(3)
    ours = np.maximum(load_sae(path, **case.facts).encode(x), 0)
    assert_same(sae.encode(torch.tensor(x)).to_dense(), ours)


def _as_published(path: Path, root: Path, name: str, release: Release) -> Path:
    """The case's files under the names, and with the settings, of the release."""
    if name == "goodfire":
        return path.rename(root / release.folder)
    if name == "llama-scope":  # SAELens knows nothing of this setting
        file = path / "hyperparams.json"
        settings = json.loads(file.read_text())
        settings["sparsity_include_decoder_norm"] = False
        file.write_text(json.dumps(settings))
    if name == "cross-layer":
        decoders = {"W_dec_3": weights(D_SAE, 4, D_IN, seed=9)}
        save_tensors(root / "W_dec_3.safetensors", decoders)
    return path


def serve(monkeypatch: pytest.MonkeyPatch, loaders: Any, root: Path) -> None:
    """Let the loaders find the files of *root* instead of the hub's."""
    missing = loaders.EntryNotFoundError

    def download(repo_id: str, filename: str, subfolder: str = "", **_: object) -> str:
        file = root / subfolder / filename
        if not file.is_file():
            raise missing(f"{repo_id}: {file}")
        return str(file)

    def shapes(_: str, filename: str) -> dict[str, list[int]]:
        content = (root / filename).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return {key: entry["shape"] for key, entry in header.items()}

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
