# The libraries pull in much more than they need; none is a dependency of ours. Each of
# these tests is skipped where its library is not installed; `make oracles` installs
# those that the package index has, and then a test that is skipped has failed.
"""Checkpoints that the native libraries write, against their own encodings."""

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.arrays import Float32
from probes.sae_formats import load_sae, write_sae
from tests.contract.sae_checkpoints import D_IN, D_SAE, HOOK, weights

pytestmark = pytest.mark.filterwarnings("ignore")


INSTALLED = os.environ.get("INNERWATCH_ORACLES", "").split()


def native(module: str, package: str) -> Any:
    """The library, or a skip that says what to install."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        if package in INSTALLED:
            pytest.fail(f"{package} is expected here: {error}")
        pytest.skip(f"pip install {package} ({error})")


def inputs() -> Float32:
    return weights(200, D_IN, seed=20) * np.float32(3)


def randomise(torch: Any, model: Any) -> None:
    """Weights as `weights` draws them; what is a threshold is above 0."""
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(sorted(model.named_parameters())):
            numbers = torch.tensor(weights(*parameter.shape, seed=seed))
            is_threshold = name.endswith("threshold")
            parameter.copy_(numbers.abs() + 0.1 if is_threshold else numbers)


def assert_same(expected: Any, features: Float32) -> None:
    """Equal within 1e-5 of the largest feature."""
    wanted = expected.detach().numpy()
    assert 0.01 < (wanted != 0).mean() < 0.9
    assert np.abs(features - wanted).max() / np.abs(wanted).max() < 1e-5


SAE_LENS: list[tuple[str, dict[str, Any]]] = [
    ("StandardSAE", {}),
    ("StandardSAE", {"apply_b_dec_to_input": False}),
    ("StandardSAE", {"normalize_activations": "layer_norm"}),
    ("StandardSAE", {"normalize_activations": "constant_norm_rescale"}),
    ("JumpReLUSAE", {}),
    ("GatedSAE", {}),
    ("TopKSAE", {"k": 7}),
    ("TopKSAE", {"k": 7, "rescale_acts_by_decoder_norm": True}),
    ("TopKSAE", {"k": 7, "normalize_activations": "layer_norm"}),
    ("Transcoder", {"d_out": 12, "apply_b_dec_to_input": False}),
    ("JumpReLUTranscoder", {"d_out": 12, "apply_b_dec_to_input": False}),
    ("SkipTranscoder", {"d_out": 12, "apply_b_dec_to_input": False}),
]


@pytest.mark.parametrize(("cls", "changes"), SAE_LENS, ids=map(str, SAE_LENS))
def test_sae_lens(tmp_path: Path, cls: str, changes: dict[str, Any]) -> None:
    """
    What SAELens saves is read as it encodes, and it reads what we import it to.
    """
    saes = native("sae_lens.saes", "sae-lens")
    torch = native("torch", "torch")
    config = getattr(saes, f"{cls}Config")(d_in=D_IN, d_sae=D_SAE, **changes)
    config.metadata.hook_name, config.metadata.model_name = HOOK, "tiny"
    sae = getattr(saes, cls)(config)
    randomise(torch, sae)
    sae.save_model(tmp_path / "sae")
    x = inputs()

    ours = load_sae(tmp_path / "sae")

    expected = sae.encode(torch.tensor(x)).to_dense()
    assert_same(expected, ours.encode(x))
    assert "saelens" == write_sae(tmp_path / "imported", ours)
    again = native("sae_lens", "sae-lens").SAE.load_from_disk(tmp_path / "imported")
    assert_same(again.encode(torch.tensor(x)).to_dense(), ours.encode(x))


CODERS: list[dict[str, Any]] = [
    {"activation": "topk"},
    {"activation": "groupmax"},
    {"activation": "topk", "transcode": True, "skip_connection": True},
    {"activation": "topk", "num_latents": D_SAE, "expansion_factor": 32},
]


@pytest.mark.parametrize("changes", CODERS, ids=map(str, CODERS))
def test_sparsify(tmp_path: Path, changes: dict[str, Any]) -> None:
    """
    What sparsify saves is read as it encodes.
    """
    sparsify = native("sparsify", "eai-sparsify")
    torch = native("torch", "torch")
    config = {"expansion_factor": D_SAE // D_IN, "k": 8, **changes}
    coder = sparsify.SparseCoder(D_IN, sparsify.SparseCoderConfig(**config))
    randomise(torch, coder)
    coder.save_to_disk(tmp_path / "layers.3")
    x = inputs()

    ours = load_sae(tmp_path / "layers.3", model_name="tiny")

    top = coder.encode(torch.tensor(x))
    expected = torch.zeros(len(x), D_SAE)
    expected.scatter_(1, top.top_indices, top.top_acts.detach())
    assert_same(expected, ours.encode(x))
    assert HOOK == ours.hook_point


CLASSES = [
    "AutoEncoder",
    "AutoEncoderNew",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "MatryoshkaBatchTopKSAE",
]


@pytest.mark.parametrize("cls", CLASSES)
def test_dictionary_learning(tmp_path: Path, cls: str) -> None:
    """
    What dictionary_learning's classes save is read as its own loader encodes it.
    """
    utils = native("dictionary_learning.utils", "dictionary-learning")
    torch = native("torch", "torch")
    sizes = {"k": 7} if "TopK" in cls else {}
    more = {"group_sizes": [16, 48]} if cls.startswith("Matryoshka") else {}
    dictionary = getattr(utils, cls)(D_IN, D_SAE, **sizes, **more)
    randomise(torch, dictionary)
    if "TopK" in cls:
        dictionary.threshold.fill_(0.75)
    trainer = {"dict_class": cls, "layer": 3, "lm_name": "tiny", **sizes}
    trainer["submodule_name"] = "resid_post_layer_3"
    torch.save(dictionary.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    x = inputs()

    ours = load_sae(tmp_path)

    loaded, _ = utils.load_dictionary(str(tmp_path), device="cpu")
    assert_same(loaded.encode(torch.tensor(x)), ours.encode(x))


SCOPIUM: list[dict[str, Any]] = [
    {"act_fn": "relu", "norm_activation": "dataset-wise"},
    {"act_fn": "jumprelu", "norm_activation": "dataset-wise"},
    {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False},
    {"act_fn": "topk", "top_k": 7, "norm_activation": "token-wise"},
    {"act_fn": "topk", "top_k": 7, "norm_activation": "inference"},
]


@pytest.mark.parametrize("changes", SCOPIUM, ids=map(str, SCOPIUM))
def test_llamascopium(tmp_path: Path, changes: dict[str, Any]) -> None:
    """
    What llamascopium saves is read as it encodes what it has normalised.
    """
    module = native("llamascopium.models.sae", "llamascopium")
    torch = native("torch", "torch")
    config = module.SAEConfig(
        hook_point_in=HOOK,
        hook_point_out=HOOK,
        d_model=D_IN,
        expansion_factor=D_SAE / D_IN,
        **changes,
    )
    model = module.SparseAutoEncoder(config)
    randomise(torch, model)
    model.set_dataset_average_activation_norm({HOOK: 9.0})
    model.save_pretrained(tmp_path)
    config.save_hyperparameters(tmp_path)
    x = inputs()

    ours = load_sae(tmp_path, model_name="tiny")

    normed = model.normalize_activations({HOOK: torch.tensor(x)})[HOOK]
    assert_same(model.encode(normed), ours.encode(x))


@pytest.mark.parametrize("act_fn", ["relu", "jumprelu"])
def test_llamascopium_crosscoder(tmp_path: Path, act_fn: str) -> None:
    """
    A feature of a crosscoder is on where llamascopium has it on at any source.
    """
    module = native("llamascopium.models.crosscoder", "llamascopium")
    torch = native("torch", "torch")
    places = (HOOK, "blocks.5.hook_resid_post")
    config = module.CrosscoderConfig(
        hook_points=list(places),
        d_model=D_IN,
        expansion_factor=D_SAE / D_IN,
        act_fn=act_fn,
    )
    model = module.Crosscoder(config)
    randomise(torch, model)
    model.set_dataset_average_activation_norm(
        dict(zip(places, (9.0, 4.0), strict=True))
    )
    model.save_pretrained(tmp_path)
    config.save_hyperparameters(tmp_path)
    x = weights(200, 2 * D_IN, seed=20) * np.float32(3)

    ours = load_sae(tmp_path, model_name="tiny")

    parts = zip(places, np.split(x, 2, axis=1), strict=True)
    batch = {name: torch.tensor(part) for name, part in parts}
    stacked, _, _ = model.prepare_input(model.normalize_activations(batch))
    assert_same(model.encode(stacked).max(dim=1).values, ours.encode(x))
    assert places == ours.hook_points


@pytest.mark.parametrize("is_jump", [False, True])
def test_circuit_tracer(tmp_path: Path, is_jump: bool) -> None:
    """
    What circuit-tracer saves is read as it encodes.
    """
    package = "circuit_tracer.transcoder.single_layer_transcoder"
    module = native(package, "circuit-tracer")
    torch = native("torch", "torch")
    levels = torch.tensor(np.abs(weights(D_SAE, seed=5)))
    activation = module.JumpReLU(levels, 0.1) if is_jump else torch.nn.functional.relu
    cpu, float32 = torch.device("cpu"), torch.float32
    model = module.SingleLayerTranscoder(
        D_IN, D_SAE, activation, 3, device=cpu, dtype=float32
    )
    randomise(torch, model)
    path = tmp_path / "layer_3.safetensors"
    model.to_safetensors(str(path))
    x = inputs()

    ours = load_sae(path, hook_point="blocks.3.mlp.hook_in", model_name="tiny")

    assert_same(model.encode(torch.tensor(x)), ours.encode(x))
