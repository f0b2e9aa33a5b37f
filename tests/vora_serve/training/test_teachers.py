"""Teachers of every kind, at their own size, with token merge, and their states kept on disk."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from model_plugin import VoRAConfig, VoRAForCausalLM
from tests.vora_serve.training import bases, world
from vora_serve.training import Distillation, Teacher
from vora_serve.training.build import load_teacher, plan_pretrain
from vora_serve.training.data import Batch, Tokeniser, collate
from vora_serve.training.embedder import init_embedder
from vora_serve.training.features import FeatureCache, PixelBridge, fit_grid
from vora_serve.training.recipe import read_recipe
from vora_serve.training.run_recipe import PretrainRun, TeacherSettings
from vora_serve.training.step import StepOptions, TrainingModel, unpatchify


def batch() -> Batch:
    tokeniser = Tokeniser(world.processor(), max_length=400)
    return collate([tokeniser(world.Colours()[1]), tokeniser(world.Colours()[2])], pad_id=0)


def made(tmp_path: Path, kind: str, own: str, image_size: int, patch: int) -> Teacher:
    """A teacher loaded as a recipe asks for it, for images of 112 pixels."""
    bases.save_teacher(tmp_path / "own", kind, image_size, patch)
    file = bases.pretrain_recipe(tmp_path, images={"image_size": 112, "patch_size": 14})
    overrides = [f"teacher.path={tmp_path / 'own'}", f"teacher.image_size={own}"]
    recipe = read_recipe(PretrainRun, file, overrides)
    assert isinstance(recipe.teacher, TeacherSettings)
    return load_teacher(recipe.teacher, plan_pretrain(recipe))


@pytest.mark.parametrize("kind", bases.TEACHERS)
def test_patches_are_compared_and_class_tokens_are_not(tmp_path: Path, kind: str) -> None:
    teacher = made(tmp_path, kind, "model", 112, 14)
    pixels = torch.randn(2, 3, 112, 112)
    states = teacher(pixels, [0, 1], "output")
    hidden = teacher.vision(pixel_values=pixels, output_hidden_states=True).hidden_states
    has_class = kind in ("clip", "dinov2")
    assert hidden[1].shape[1] == 64 + has_class
    torch.testing.assert_close(states[0], hidden[1][:, int(has_class) :])
    module = TrainingModel(world.model(), teacher, Distillation())
    assert {"aux_0", "aux_1"} <= module(batch()).keys()


@pytest.mark.parametrize(("kind", "size", "patch"), [("dinov2", 70, 14), ("siglip", 64, 16)])
def test_a_teacher_sees_images_at_its_own_size(
    tmp_path: Path, kind: str, size: int, patch: int
) -> None:
    teacher = made(tmp_path, kind, "own", size, patch)
    model = world.model()
    module = TrainingModel(model, teacher, Distillation()).eval()
    given = batch()
    with torch.no_grad():
        losses = module(given)
        pixels = unpatchify(given.pixel_values, (8, 8), 14)
        small = functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
        hidden = teacher.vision(pixel_values=small, output_hidden_states=True).hidden_states[1]
        side = size // patch
        grid = hidden[:, -(side**2) :].transpose(1, 2).reshape(2, 48, side, side)
        wanted = functional.interpolate(grid, size=(8, 8), mode="bilinear").flatten(2)
        targets = module.targets(given)[0]
    torch.testing.assert_close(targets, wanted.transpose(1, 2).flatten(0, 1), atol=1e-5, rtol=1e-4)
    assert 0 < float(losses["aux_0"]) < 2


def test_pixels_are_normalised_as_the_teacher_wants() -> None:
    raw = torch.rand(1, 3, 20, 20)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    bridge = PixelBridge((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), (0.5,) * 3, (0.5,) * 3, 20)
    given = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(bridge(given), (raw - 0.5) / 0.5, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", bases.TEACHERS)
def test_every_kind_starts_the_embedder(tmp_path: Path, kind: str) -> None:
    teacher = made(tmp_path, kind, "own", 70, 14)
    model = world.model()
    init_embedder(model, teacher)
    theirs = dict(teacher.vision.named_parameters())
    projection = next(p for p in theirs.values() if p.shape == (48, 3, 14, 14))
    own = model.vision_embedding
    assert torch.equal(own.patchifier.proj.weight, projection)
    name = next(n for n in theirs if "position_embedding" in n)
    learned = theirs[name].flatten(0, -2)[-25:]
    corner = own.pos_embed[0, 0]
    assert functional.cosine_similarity(corner, learned[0], dim=0) > 0.7, "resized, not shifted"


def test_merged_tokens_learn_the_mean_of_what_they_stand_for() -> None:
    torch.manual_seed(0)
    config = VoRAConfig(**world.model().config.to_dict() | {"spatial_merge_size": 2})
    model = VoRAForCausalLM(config)
    teacher = world.teacher()
    module = TrainingModel(model, teacher, Distillation()).eval()
    states = torch.randn(3, 64, 5)
    pooled = fit_grid(states, (8, 8), 2)
    assert pooled.shape == (3, 16, 5)
    blocks = states.view(3, 4, 2, 4, 2, 5).mean((2, 4)).reshape(3, 16, 5)
    torch.testing.assert_close(pooled, blocks)
    processor = world.processor()
    settings = type(processor.settings)(**(vars(processor.settings) | {"merge_size": 2}))
    processor.image_processor.settings = settings
    example = Tokeniser(processor, 400)(world.Colours()[1])
    assert int((example.image_ids == 0).sum()) == 16
    losses = module(collate([example], 0))
    (losses["lm"] + losses["aux_0"]).backward()
    assert 0 < losses["aux_1"].item() < 2


def test_kept_states_give_the_same_losses(tmp_path: Path) -> None:
    teacher, given = world.teacher(), batch()
    plain = TrainingModel(world.model(), teacher, Distillation()).eval()
    cache = FeatureCache(tmp_path / "features", 10**7)
    kept = TrainingModel(world.model(), teacher, Distillation(), StepOptions(cache=cache)).eval()
    kept.load_state_dict(plain.state_dict())
    with torch.no_grad():
        without, first, second = plain(given), kept(given), kept(given)
    assert (cache.hits, cache.misses) == (2, 2)
    for key in ("aux_0", "aux_1"):
        assert float(first[key]) == float(second[key]), "kept or not, a run is the same"
        assert float(first[key]) == pytest.approx(float(without[key]), abs=2e-3)
    full = FeatureCache(tmp_path / "features", 10)
    full.put("0" * 32, {"output.0": torch.zeros(4, 4)})
    assert full.get("0" * 32, ["output.0"]) is None, "nothing is added beyond the limit"
    broken = next((tmp_path / "features").rglob("*.safetensors"))
    broken.write_bytes(b"broken")
    assert cache.get(broken.stem, ["output.0"]) is None
