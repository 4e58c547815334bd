"""The SAELens reader against the formula, on files as SAELens writes them."""

import json
from pathlib import Path

import numpy as np
import pytest

from probes import ArtifactError, Max, SAEFeatureDetector, load_sae, score
from probes.sae_formats.safetensors_file import open_safetensors
from tests.probes.builders import D_MODEL, HOOK_POINT, floats, write_sae

V6: dict[str, object] = {
    "architecture": "standard",
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "model_name": "tiny",
        "hook_name": HOOK_POINT,
        "prepend_bos": True,
    },
}
FLAT: dict[str, object] = {
    "architecture": "standard",
    "activation_fn_str": "relu",
    "hook_name": "blocks.2.hook_resid_pre",
    "model_name": "tiny",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "finetuning_scaling_factor": False,
}
OLDEST: dict[str, object] = {
    "hook_point": HOOK_POINT,
    "model_name": "tiny",
    "normalize_activations": False,
}
CONFIGS = {
    "v6": V6,
    "v6-jumprelu": V6 | {"architecture": "jumprelu"},
    "v6-unshifted": V6 | {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "flat": FLAT,
    "oldest": OLDEST,
}


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_encode_is_the_formula(tmp_path: Path, cfg: dict[str, object]) -> None:
    """
    All features equal the formula written out with the file's own tensors.
    """
    tensors = write_sae(tmp_path / "sae", cfg)
    x = floats(50, D_MODEL, seed=16) * np.float32(2)

    sae = load_sae(tmp_path / "sae")

    shift = tensors["b_dec"] if cfg.get("apply_b_dec_to_input", True) else 0
    pre = (x - shift) @ tensors["W_enc"] + tensors["b_enc"]
    expected = np.maximum(pre, 0)
    if cfg.get("architecture") == "jumprelu":
        expected = expected * (pre > tensors["threshold"])
    np.testing.assert_allclose(sae.encode(x), expected, rtol=1e-4, atol=1e-5)
    assert HOOK_POINT == sae.hook_point
    assert (D_MODEL, 30) == (sae.d_in, sae.d_sae)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_a_few_features_are_exact(tmp_path: Path, cfg: dict[str, object]) -> None:
    """
    The detector of a few features equals the weighted sum of the full encoding.
    """
    write_sae(tmp_path / "sae", cfg)
    sae = load_sae(tmp_path / "sae")
    x = floats(50, D_MODEL, seed=16) * np.float32(2)

    detector = SAEFeatureDetector.from_sae(
        sae,
        name="few",
        features=[17, 3],
        feature_weights=[1.0, 0.5],
        aggregator=Max(),
    )

    features = sae.encode(x)
    expected = features[:, 17] + 0.5 * features[:, 3]
    evidence = score(detector, {HOOK_POINT: x})[:, 0]
    np.testing.assert_allclose(evidence, expected, rtol=1e-4, atol=1e-5)
    assert evidence.any()


def test_half_precision_is_read(tmp_path: Path) -> None:
    """
    Weights saved in float16 are read as the same numbers in float32.
    """
    tensors = write_sae(tmp_path / "sae", V6, dtype=np.float16)

    sae = load_sae(tmp_path / "sae")

    np.testing.assert_array_equal(sae.W_enc, tensors["W_enc"].astype(np.float32))


REFUSED = [
    ({"architecture": "batchtopk"}, r"'batchtopk' is refused: a state of training"),
    ({"architecture": "batchtopk2"}, r"'batchtopk2' is refused: unknown"),
    ({"architecture": "temporal"}, r"'temporal' is refused: needs .* earlier tokens"),
    ({"activation_fn_str": "tanh-relu"}, r"activation_fn_str: 'tanh-relu' is refused"),
    ({"normalize_activations": "x"}, r"normalize_activations: 'x' is refused"),
    (
        {"normalize_activations": "expected_average_only_in"},
        r"cfg\.json: scale: .*the file does not hold the scale; give it",
    ),
    ({"normalize_activations": True}, r"cfg\.json: scale: .*give it"),
    ({"reshape_activations": "hook_z"}, r"reshape_activations"),
    ({"finetuning_scaling_factor": True}, r"finetuning_scaling_factor: is refused"),
    ({"metadata": {"hook_name": "blocks 1"}}, r"cfg\.json: hook_point: expected a"),
    (
        {"metadata": {"hook_name": HOOK_POINT, "hook_head_index": 3}},
        r"metadata\.hook_head_index: is refused",
    ),
    ({"metadata": {}}, r"metadata\.hook_point: expected a string"),
    ({"metadata": {"hook_name": HOOK_POINT}}, r"cfg\.json: model_name: .*give it"),
    ({"d_sae": 31}, r"W_enc: expected \(12, 31\), found \(12, 30\)"),
    ({"d_in": "12"}, r"d_in"),
    ({"architecture": "topk"}, r"cfg\.json: k: expected an integer"),
    ({"architecture": "topk", "k": 31}, r"sae: SAE: k: expected 1 to 30, got 31"),
    ({"architecture": "gated"}, r"b_gate: expected floats of shape \(30,\), found no"),
    ({"architecture": "transcoder"}, r"d_out: expected"),
]


@pytest.mark.parametrize(("changes", "match"), REFUSED, ids=[r[1] for r in REFUSED])
def test_other_kinds_are_refused(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    """
    What a few features cannot give exactly is refused by name, with the reason.
    """
    write_sae(tmp_path / "sae", V6 | changes)

    with pytest.raises(ArtifactError, match=match) as caught:
        load_sae(tmp_path / "sae")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    """
    A missing or cut file is refused, naming it.
    """
    write_sae(tmp_path / "sae", V6)
    file = tmp_path / "sae" / name
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ArtifactError, match=name):
        load_sae(tmp_path / "sae")

    file.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: expected a file"):
        load_sae(tmp_path / "sae", format="saelens")


@pytest.mark.parametrize("features", [[], [30], [-1], [1, 1]])
def test_impossible_features_are_refused(tmp_path: Path, features: list[int]) -> None:
    """
    A feature that is not in the SAE, or is there twice, cannot be watched.
    """
    write_sae(tmp_path / "sae", V6)
    sae = load_sae(tmp_path / "sae")

    with pytest.raises(ValueError, match="features"):
        SAEFeatureDetector.from_sae(sae, name="f", features=features, aggregator=Max())


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """
    The upper half of a float32, as bfloat16 is stored, is read as that float32.
    """
    upper = np.array([0x3F80, 0xC000, 0x3E80], dtype="<u2")  # 1, -2, 0.25
    header = json.dumps({"t": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}})
    content = len(header).to_bytes(8, "little") + header.encode() + upper.tobytes()
    (tmp_path / "t.safetensors").write_bytes(content)

    tensors = open_safetensors(tmp_path / "t.safetensors")
    assert [1.0, -2.0, 0.25] == tensors.floats("t", (3,)).tolist()
