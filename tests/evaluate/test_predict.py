"""Embedding a fold's test patients, one model on a table it has never seen, and prediction for one patient."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mgi
from mgi import cli
from mgi.codecs import decode_mask
from mgi.config import PredictOptions, StatedSlide
from mgi.errors import (
    CheckpointError,
    CohortError,
    ConfigError,
    ExpressionError,
    ImageTableError,
    MissingInputError,
    MissingPackageError,
    SlideError,
)
from mgi.evaluate import external, overlay, regions
from mgi.evaluate import predict as stage
from mgi.evaluate.external import evaluate_tables
from mgi.evaluate.masks import stitch
from mgi.evaluate.predict import predict
from mgi.evaluate.retrieval import embed
from mgi.inference import load_segmenter, read_profiles_for
from mgi.model.segmenter import Segmenter
from mgi.names import first_few
from mgi.prepare.annotations import find_annotation, read_annotation
from mgi.simulate.cohort import write_svs
from mgi.tables import write_table
from mgi.train import checkpoint, validation
from mgi.train.batches import to_tensor
from mgi.train.data import Images, read_images
from mgi.train.decision import Decision
from mgi.train.device import Place
from mgi.train.finetune import finetune
from mgi.train.profiles import read_profiles
from tests.tables import CASES, IMAGES, patient_dice, write_cohort

CPU = Place(torch.device("cpu"))


def test_embeddings_cover_the_test_patients_images_and_genes(cohort, pretrained, tmp_path):
    embed(pretrained, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "embeddings.parquet")
    table = pq.read_table(tmp_path / "embeddings.parquet").to_pandas()
    assert table.groupby("kind").size().to_dict() == {"image": 2 * IMAGES, "patient": 2, "gene": 2}
    model, images = mgi.load(pretrained), read_images(cohort.sources, {CASES[6]})
    with torch.inference_mode():
        projected = model.project_images(to_tensor(images.load(np.arange(IMAGES)), CPU.device))
        expected = model.pool_bags(projected, torch.zeros(IMAGES, dtype=torch.int64), 1)
    patients = table[table.kind == "patient"]
    assert patients.case_id.tolist() == CASES[6:]
    np.testing.assert_allclose(patients.vector.iloc[0], expected[0].numpy(), atol=1e-6)
    genes = table[table.kind == "gene"]
    assert genes.case_id.tolist() == CASES[6:] and genes.source_id.isna().all()
    with torch.inference_mode():
        expected = mgi.load(pretrained).embed_genes(read_profiles(cohort.expression).of(CASES[6:])[0])
    np.testing.assert_allclose(np.stack(genes.vector), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.stack(table.vector), axis=1), 1, rtol=1e-5)


def test_embeddings_do_not_depend_on_batch_size(cohort, pretrained, tmp_path, monkeypatch):
    seen, tables = [], []
    model, load = mgi.load(pretrained), Images.load
    monkeypatch.setattr(Images, "load", lambda self, rows: seen.append(len(rows)) or load(self, rows))
    for batch in (32, 5):
        monkeypatch.setattr(validation, "BATCH", batch)
        embed(pretrained, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")
        tables.append(np.stack(pq.read_table(tmp_path / "e.parquet")["vector"].to_numpy()))
    np.testing.assert_allclose(*tables, atol=1e-6)
    assert seen == [12, 5, 5, 2]
    genes = validation.embed_genes(model, read_profiles(cohort.expression), CASES[:3], CPU)
    assert genes.shape == (3, 8)


def test_embedding_refuses_other_genes_and_fine_tuned_models(cohort, pretrained, finetuned, tmp_path):
    other = write_cohort(tmp_path / "other", genes=30)
    with pytest.raises(CheckpointError, match="lacks 10 of the 40 genes of the model"):
        embed(pretrained, other.sources, other.expression, other.splits, 0, tmp_path / "e.parquet")
    with pytest.raises(CheckpointError, match="embeddings come from a pre-trained one"):
        embed(finetuned, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")


def test_external_validation_measures_every_patient_of_a_table(cohort, finetuned, tmp_path):
    table = cohort.folder / "images" / "all.parquet"
    evaluate_tables(finetuned, [table], cohort.expression, tmp_path, 100)
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = patient_dice(pq.read_table(tmp_path / "predictions.parquet").to_pandas())
    assert summary["n_patients"] == len(CASES)
    assert summary["dice"]["mean"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


@pytest.fixture
def trained_on_cuda(pretrained, finetuned, tmp_path):
    """Copies of a pre-trained and a fine-tuned model that say they were trained on CUDA, as older ones do."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in (pretrained, finetuned)]
    for copy in copies:
        config = json.loads((copy / "config.json").read_text())
        config["options"]["device"] = "cuda"
        (copy / "config.json").write_text(json.dumps(config))
    return copies


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without CUDA")
def test_a_model_of_a_gpu_runs_on_a_cpu(cohort, trained_on_cuda, tmp_path):
    aligner, segmenter = trained_on_cuda
    evaluate_tables(segmenter, [cohort.folder / "images" / "all.parquet"], cohort.expression, tmp_path / "out", 100)
    assert (tmp_path / "out" / "summary.json").exists()
    embed(aligner, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        embed(aligner, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet", device="cuda")


def test_the_device_is_no_part_of_a_model(finetuned, pretrained):
    for folder in (finetuned, pretrained):
        assert "device" not in json.loads((folder / "config.json").read_text())["options"]


def test_genes_matter_to_external_validation_and_may_be_absent(cohort, finetuned, tmp_path):
    table = cohort.folder / "images" / "all.parquet"
    evaluate_tables(finetuned, [table], cohort.expression, tmp_path / "with", 100)
    evaluate_tables(finetuned, [table], None, tmp_path / "without", 100)
    first, second = (
        pq.read_table(tmp_path / name / "predictions.parquet")["prediction"] for name in ("with", "without")
    )
    assert first != second


def test_shuffled_genes_are_another_cases_own(cohort, finetuned, tmp_path, monkeypatch):
    tables, seen = [cohort.folder / "images" / "all.parquet"], []
    write = external.write_predictions
    monkeypatch.setattr(
        external, "write_predictions", lambda model, parts, profiles, *rest: seen.append(profiles) or write(
            model, parts, profiles, *rest
        )
    )  # fmt: skip
    for number, options in enumerate(({}, {"shuffle_genes": True}, {"shuffle_genes": True, "seed": 1})):
        evaluate_tables(finetuned, tables, cohort.expression, tmp_path / str(number), 100, **options)
    own, *others = [[profiles.row[case] for case in sorted(profiles.row)] for profiles in seen]
    for other in others:
        assert sorted(other) == sorted(own) and all(a != b for a, b in zip(other, own, strict=True))
    assert others[0] != others[1]
    with pytest.raises(CohortError, match="shuffling needs the profiles of at least two of the cases"):
        evaluate_tables(finetuned, tables, None, tmp_path / "none", 100, shuffle_genes=True)


def test_a_folder_of_tables_is_evaluated_as_one_table(cohort, finetuned, tmp_path):
    table = pq.read_table(cohort.folder / "images" / "all.parquet")
    for number, rows in enumerate((table.slice(0, IMAGES), table.slice(IMAGES))):
        write_table(rows, tmp_path / "images" / f"{number}.parquet")
    write_table(pa.table({"source_id": ["no table of images"]}), tmp_path / "images" / "0.status.parquet")
    evaluate_tables(finetuned, [tmp_path / "images"], cohort.expression, tmp_path / "many", 100)
    evaluate_tables(finetuned, [cohort.folder / "images"], cohort.expression, tmp_path / "one", 100)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("many", "one")]
    assert summaries[0] == summaries[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageTableError, match="empty holds no table of images"):
        evaluate_tables(finetuned, [tmp_path / "empty"], cohort.expression, tmp_path / "out", 100)


def test_rejects_expression_of_other_cases_and_warns_of_missing_ones(cohort, finetuned, tmp_path, caplog):
    profiles = pq.read_table(cohort.expression)
    shutil.copy(cohort.expression.with_name("genes.parquet"), tmp_path)
    names = profiles["case_id"].to_pylist()

    def renamed(case_ids):
        column = pa.array(case_ids, pa.string())
        write_table(profiles.set_column(0, "case_id", column), tmp_path / "expression.parquet")
        evaluate_tables(finetuned, [cohort.folder / "images"], tmp_path / "expression.parquet", tmp_path / "out", 100)

    with pytest.raises(CohortError, match=r"has no profile of any of the \d+ cases, such as .*: correct its case_id"):
        renamed([f"{name}-01A" for name in names])
    renamed([f"{names[0]}-01A", *names[1:]])
    assert "have no profile in" in caplog.text and names[0] in caplog.text


def test_a_model_refuses_another_unit_of_expression_and_other_mpp(cohort, pretrained, finetuned, tmp_path):
    scores = write_cohort(tmp_path / "scores", unit="z-score")
    with pytest.raises(CheckpointError, match=r"trained on log2\(TPM\+1\) and the expression table holds z-score"):
        evaluate_tables(finetuned, [cohort.folder / "images" / "all.parquet"], scores.expression, tmp_path, 100)
    with pytest.raises(CheckpointError, match="the expression table holds z-score"):
        embed(pretrained, scores.sources, scores.expression, scores.splits, 0, tmp_path / "e.parquet")
    coarse = write_cohort(tmp_path / "coarse", mpp=0.5)
    with pytest.raises(CheckpointError, match=r"images of 0\.5 mpp and the model in .* was trained on 0\.37"):
        evaluate_tables(finetuned, [coarse.folder / "images" / "all.parquet"], cohort.expression, tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"images of 0\.5 mpp and the model in .* was trained on 0\.37"):
        embed(pretrained, coarse.sources, coarse.expression, coarse.splits, 0, tmp_path / "e.parquet")


def make_positive(expression):
    """Replace a table's values by their absolute values."""
    table = pq.read_table(expression)
    index = table.schema.get_field_index("values")
    values = np.abs(np.stack(table["values"].to_numpy()))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    pq.write_table(table.set_column(index, table.schema.field(index), flat), expression)


def test_table_without_unit_is_assumed_to_have_the_models(finetuned, tmp_path, caplog):
    other = write_cohort(tmp_path / "other", unit=None, mpp=None)
    images = [other.folder / "images" / "all.parquet"]
    with pytest.raises(ExpressionError, match=r"does not hold log2\(TPM\+1\): a value is -"):
        evaluate_tables(finetuned, images, other.expression, tmp_path / "out", 100)
    make_positive(other.expression)
    evaluate_tables(finetuned, images, other.expression, tmp_path / "out", 100)
    assert (tmp_path / "out" / "summary.json").exists()
    assert "does not state its unit: taken for log2(TPM+1), as the model's" in caplog.text


def test_stated_unit_overrides_the_tables(finetuned, tmp_path):
    scores = write_cohort(tmp_path / "scores", unit="z-score")
    tables = [scores.folder / "images" / "all.parquet"]
    with pytest.raises(CheckpointError, match=r"trained on log2\(TPM\+1\) and the expression table holds z-score"):
        evaluate_tables(finetuned, tables, scores.expression, tmp_path / "other", 100, unit="z-score")
    with pytest.raises(ExpressionError, match="unknown unit 'tons'"):
        evaluate_tables(finetuned, tables, scores.expression, tmp_path / "other", 100, unit="tons")
    make_positive(scores.expression)
    evaluate_tables(finetuned, tables, scores.expression, tmp_path / "out", 100, unit="log2-tpm")
    assert (tmp_path / "out" / "summary.json").exists()


def test_external_validation_refuses_other_genes(cohort, finetuned, tmp_path):
    other = write_cohort(tmp_path / "other", genes=30)
    with pytest.raises(CheckpointError, match="lacks 10 of the 40 genes of the model"):
        evaluate_tables(finetuned, [cohort.folder / "images" / "all.parquet"], other.expression, tmp_path, 100)


def test_each_patients_genes_are_encoded_once_whatever_the_order_of_its_images(
    cohort, finetuned, tmp_path, monkeypatch
):
    model = mgi.load(finetuned)
    images, profiles = read_images(cohort.sources, set(CASES)), read_profiles(cohort.expression)
    frame = images.frame.assign(encoded=images.encoded, masks=images.masks, positive=images.positive)
    frame = frame.sample(frac=1, random_state=0, ignore_index=True)
    shuffled = Images(
        frame[images.frame.columns], frame.encoded.tolist(), frame.masks.tolist(), frame.positive.to_numpy()
    )
    values, present = profiles.of(frame.case_id.tolist())
    inputs = to_tensor(shuffled.load(np.arange(len(shuffled))), CPU.device)
    with torch.inference_mode():
        expected = model(inputs, values, torch.arange(len(shuffled)), present).sigmoid().numpy()
    encoded, encode = [], model.encode_genes
    monkeypatch.setattr(model, "encode_genes", lambda values: encoded.append(len(values)) or encode(values))
    monkeypatch.setattr(validation, "BATCH", 7)
    found = np.zeros_like(expected)
    for rows, probability in validation.predict_probabilities(model, shuffled, profiles, CPU):
        found[rows] = probability
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(encoded) == len(CASES)
    validation.write_predictions(model, [shuffled], profiles, 0, Decision(), CPU, tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert table.case_id.tolist() == frame.case_id.tolist()
    written = np.stack([decode_mask(png) for png in table.prediction])
    assert (written == (found >= 0.5)).mean() > 0.999


def test_a_pretrained_model_is_not_evaluated_as_a_segmenter(cohort, pretrained, tmp_path):
    with pytest.raises(CheckpointError, match="holds a pre-trained model; give a fine-tuned one"):
        evaluate_tables(pretrained, [cohort.folder / "images" / "all.parquet"], None, tmp_path, 100)


def test_images_of_another_size_are_refused(cohort, finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.tables.PX", 48)
    other = write_cohort(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds images of 48 px and the model in .* was trained on 32 px"):
        evaluate_tables(finetuned, [other.folder / "images" / "all.parquet"], None, tmp_path, 100)


@pytest.fixture
def sees_dark(monkeypatch):
    """Let any model take the dark pixels for the tumour, so that what is written can be checked against the image."""

    def probabilities(model, images, profiles, place):
        # Slices of MRI are normalised, and their ordinary tissue is dark.
        dark = 100 if images.mpp else 10
        for row in range(len(images)):
            yield np.array([row]), (images.load(np.array([row])).mean(axis=-1) < dark).astype(np.float32)

    monkeypatch.setattr(stage, "predict_probabilities", probabilities)


def of_mpp(model, mpp, folder):
    """Copy a model as one that was trained on images of so many microns per pixel; None is MRI."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mpp": mpp}))
    return folder


@pytest.fixture
def of_slides(finetuned, tmp_path):
    """A model of tiles of 1 micron per pixel."""
    return of_mpp(finetuned, 1.0, tmp_path / "of-slides")


@pytest.fixture
def of_mri(finetuned, tmp_path):
    """A model of MRI."""
    return of_mpp(finetuned, None, tmp_path / "of-mri")


@pytest.fixture
def slide(tmp_path):
    """Pink tissue of 0.5 microns per pixel with a dark square 256 wide, its corner at x 300 and y 420."""
    pixels = np.full((1000, 1200, 3), (220, 150, 200), np.uint8)
    pixels[420:676, 300:556] = (90, 30, 110)
    write_svs(pixels, tmp_path / "TCGA-AA-0000-01Z-00-DX1.svs")
    return tmp_path / "TCGA-AA-0000-01Z-00-DX1.svs"


@pytest.mark.parametrize(("largest", "mpp"), [(8192, 0.73), (8192, 1.0), (8192, 1.37), (128, 1.0), (128, 0.73)])
def test_slide_prediction_writes_mask_outlines_and_picture(
    finetuned, slide, sees_dark, tmp_path, monkeypatch, largest, mpp
):
    monkeypatch.setattr(regions, "MAX_PLANE_PX", largest)
    predict(of_mpp(finetuned, mpp, tmp_path / "model"), slide, tmp_path / "out")
    name = slide.stem
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}_mask.tiff")) > 0
    scale = 1200 / mask.shape[1]
    truth = np.zeros((1000, 1200), bool)
    truth[420:676, 300:556] = True
    truth = np.asarray(Image.fromarray(truth).resize(mask.shape[::-1], Image.Resampling.NEAREST))
    assert (mask & truth).sum() / (mask | truth).sum() > (0.95 if largest == 8192 else 0.75)
    assert max(mask.shape) <= largest and scale == pytest.approx(round(scale), rel=0.02)
    features = json.loads((tmp_path / "out" / f"{name}.geojson").read_text())["features"]
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["Tumor"]
    ring = np.array(features[0]["geometry"]["coordinates"][0])
    np.testing.assert_allclose([ring.min(0), ring.max(0)], [[300, 420], [556, 676]], atol=4 if largest == 8192 else 12)
    np.testing.assert_array_equal(ring, ring.round(2))
    picture = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
    # Below the picture of the slide: the legend and a scale bar of a quarter of its width at most.
    assert picture.shape[1] == 1200 and 1000 < picture.shape[0] < 1100
    assert (picture[1000:] == overlay.TUMOUR).all(axis=-1).any()
    dark = (picture[1000:] == overlay.INK).all(axis=-1)
    runs = ["".join("#" if pixel else " " for pixel in row).split() for row in dark]
    # 100 microns at 0.5 to a pixel.
    assert max(len(run) for row in runs for run in row) == pytest.approx(200, abs=1)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.*")) == [
        f"{name}.geojson", f"{name}.png", f"{name}.tiff", f"{name}_mask.tiff"
    ]  # fmt: skip
    with openslide.OpenSlide(tmp_path / "out" / "probability" / f"{name}.tiff") as pyramid:
        assert pyramid.dimensions == mask.shape[::-1]
        assert pyramid.level_count > 1 or max(mask.shape) <= 256
        shades = np.asarray(pyramid.read_region((0, 0), 0, pyramid.dimensions))[..., 0]
    # Certain where the square is, nothing outside of all tiles.
    assert ((shades >= 128) == mask).mean() > 0.97 and shades.max() == 255 and shades.min() == 0


def test_slide_without_tumour_has_an_empty_mask_and_no_outline(of_slides, tmp_path, sees_dark):
    path = tmp_path / "pale.svs"
    write_svs(np.full((400, 400, 3), (220, 150, 200), np.uint8), path)
    predict(of_slides, path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "pale.geojson").read_text())["features"] == []
    assert not np.asarray(Image.open(tmp_path / "out" / "masks" / "pale_mask.tiff")).any()


def test_a_slide_without_tissue_is_refused(of_slides, tmp_path):
    path = tmp_path / "glass.svs"
    write_svs(np.full((400, 400, 3), 250, np.uint8), path)
    with pytest.raises(SlideError, match=r"glass\.svs: no tissue"):
        predict(of_slides, path, tmp_path / "out")


@pytest.mark.parametrize("folder", ["out", "out/masks"])
def test_output_is_a_folder_of_annotations_that_tiling_reads(of_slides, slide, sees_dark, tmp_path, folder):
    predict(of_slides, slide, tmp_path / "out")
    found = read_annotation(find_annotation(tmp_path / folder, slide.stem), (1200, 1000))
    assert found.mask(320, 440, 200, 20).all() and not found.mask(600, 440, 200, 20).any()


def test_rejects_output_beside_the_image_or_over_a_file(of_slides, of_mri, slide, sees_dark, tmp_path, monkeypatch):
    series = write_series(tmp_path / "s" / "TCGA_CS_4941_19960909", [1])
    monkeypatch.setattr(stage, "move_to_device", lambda *_: pytest.fail("refused before computing"))
    for model, image, own in ((of_slides, slide, slide.parent), (of_mri, series, series)):
        with pytest.raises(ConfigError, match="the folder of the image itself: name another folder"):
            predict(model, image, own / ".")
    for model, image, name in (
        (of_slides, slide, f"{slide.stem}.geojson"),
        (of_slides, slide, f"masks/{slide.stem}_mask.tiff"),
        (of_mri, series, "TCGA_CS_4941_19960909_1_mask.tif"),
    ):
        path = tmp_path / name.replace(".", "-") / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(ConfigError, match="exists and would be overwritten: name another folder"):
            predict(model, image, tmp_path / name.replace(".", "-"))
        assert path.read_text() == "mine"


def test_checks_the_device_before_tiling(of_slides, slide, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(stage, "tile_slides", lambda *_, **__: pytest.fail("tiled first"))
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        predict(of_slides, slide, tmp_path / "out", device="cuda")


def test_batches_may_come_in_any_order(slide):
    frame = pd.DataFrame({"x": [10, 42, 10, 42], "y": [5, 5, 37, 37], "size": 32.0})
    random = np.random.default_rng(0)
    tiles = random.random((4, 16, 16)).astype(np.float32)
    batches = ((rows, tiles[rows]) for rows in (np.array([3, 1]), np.array([0, 2])))
    plane, _, pixel = regions.assemble_plane(frame, batches, 16, 0.5)
    assert pixel == 2.0
    np.testing.assert_array_equal(plane, stitch(tiles, frame.x.to_numpy(), frame.y.to_numpy(), 32) >= 0.5)


MISSING_IN_TRAINING = ("shapely", "skimage", "pyvips", "matplotlib")


def test_external_validation_imports_in_the_training_environment():
    blocked = f"import sys; sys.modules |= dict.fromkeys({MISSING_IN_TRAINING}); import mgi.evaluate.external"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("train-cpu", "train-gpu"):
        assert "scipy =" in Path(f"workflow/envs/{name}.yaml").read_text()


def test_predict_names_the_package_that_its_environment_lacks(monkeypatch):
    monkeypatch.delitem(sys.modules, "mgi.evaluate.predict")
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(MissingPackageError, match=r"mgi predict needs openslide, .*pip install"):
        cli.evaluate.predict(None, None, None)


def test_expression_for_a_model_without_genes_is_a_warning(cohort, finetune_options, tmp_path, caplog):
    options = finetune_options(steps=1, genes="none", vit=False)
    finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path / "model")
    table = cohort.folder / "images" / "all.parquet"
    with caplog.at_level("WARNING", logger="mgi"):
        evaluate_tables(tmp_path / "model", [table], cohort.expression, tmp_path / "out", 100)
    assert "was trained without genes: the expression table is not used" in caplog.text


def write_series(folder, numbers):
    """Write slices 64 wide whose dark box grows with the number, and return their folder."""
    folder.mkdir(parents=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(180, 250, (64, 64, 3), dtype=np.uint8)
        pixels[10 : 10 + 2 * number, 20:40] = 10
        Image.fromarray(pixels).save(folder / f"TCGA_CS_4941_19960909_{number}.tif")
    return folder


def test_series_prediction_writes_one_mask_per_slice_at_its_own_size(of_mri, sees_dark, tmp_path):
    # The masks are named after the slices, whatever the folder's name.
    folder = write_series(tmp_path / "renamed", (1, 2, 10))
    predict(of_mri, folder, tmp_path / "out")
    mask = np.asarray(Image.open(tmp_path / "out" / "TCGA_CS_4941_19960909_10_mask.tif"))
    assert mask.shape == (64, 64) and set(np.unique(mask)) == {0, 255}
    assert abs(int((mask > 0).sum()) - 400) < 60 and mask[20, 30] == 255
    assert len(list((tmp_path / "out").glob("*_mask.tif"))) == 3 and (tmp_path / "out" / f"{folder.name}.png").exists()


def test_a_single_slice_is_no_series_and_has_the_models_threshold(of_mri, tmp_path, monkeypatch):
    config = json.loads((of_mri / "config.json").read_text())
    (of_mri / "config.json").write_text(json.dumps(config | {"threshold": 0.5, "temperature": 4.0, "min_component": 0}))
    probability = torch.full((1, 32, 32), 0.1).index_fill(1, torch.tensor([0]), 0.6)
    monkeypatch.setattr(Segmenter, "predict", lambda self, images, *_: probability.expand(len(images), -1, -1))
    for numbers, rows in ([1], 2), ([1, 2], 64):
        folder = write_series(tmp_path / f"series{len(numbers)}", numbers)
        predict(of_mri, folder, tmp_path / f"out{len(numbers)}")
        mask = np.asarray(Image.open(tmp_path / f"out{len(numbers)}/TCGA_CS_4941_19960909_1_mask.tif"))
        assert abs(int((mask > 0).any(axis=1).sum()) - rows) <= 1


def test_a_patients_genes_change_the_prediction(of_slides, slide, cohort, tmp_path, monkeypatch):
    seen = []

    def written(path, name, images, batches, *rest):
        seen.append(np.concatenate([probability for _, probability in batches]))
        return [], ""

    monkeypatch.setattr(stage, "_write_slide", written)
    predict(of_slides, slide, tmp_path / "out")
    for case in CASES[:2]:
        predict(of_slides, slide, tmp_path / "out", expression=cohort.expression, case_id=case)
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[1], seen[2])


def test_model_without_mpp_accepts_a_series_and_rejects_a_slide(of_slides, sees_dark, slide, tmp_path):
    config = json.loads((of_slides / "config.json").read_text())
    del config["mpp"]
    (of_slides / "config.json").write_text(json.dumps(config))
    predict(of_slides, write_series(tmp_path / "series", [1]), tmp_path / "out")
    with pytest.raises(
        CheckpointError, match="states no mpp to cut a slide's tiles at: give a model trained on slides"
    ):
        predict(of_slides, slide, tmp_path / "out")


def test_rejects_what_it_cannot_predict(of_slides, of_mri, slide, cohort, tmp_path):
    with pytest.raises(CheckpointError, match="states no mpp to cut a slide's tiles at"):
        predict(of_mri, slide, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"was trained on slides, of 1 mpp: give a slide"):
        predict(of_slides, tmp_path, tmp_path / "out")
    with pytest.raises(MissingInputError, match="image not found"):
        predict(of_slides, tmp_path / "gone.svs", tmp_path / "out")
    with pytest.raises(CohortError, match="has no profile of the case 'TCGA-ZZ-9999'"):
        predict(of_slides, slide, tmp_path / "out", expression=cohort.expression, case_id="TCGA-ZZ-9999")
    with pytest.raises(CohortError, match="needs both the expression table and a case id"):
        predict(of_slides, slide, tmp_path / "out", expression=cohort.expression)


def test_files_of_a_failed_prediction_leave_nothing_behind(of_slides, slide, sees_dark, tmp_path, monkeypatch):
    def fail(*_):
        raise SlideError("the slide cannot be read")

    monkeypatch.setattr(stage, "read_downsampled", fail)
    with pytest.raises(SlideError, match=r"^the slide cannot be read$"):
        predict(of_slides, slide, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SlideError):
        predict(of_slides, slide, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_messages_name_no_temporary_file(of_slides, slide, sees_dark, tmp_path, caplog):
    with caplog.at_level("INFO", logger="mgi"):
        predict(of_slides, slide, tmp_path / "out")
    assert "mm2 of tumour" in caplog.text and "images.parquet" not in caplog.text


def test_several_images_go_on_after_a_failure_and_where_they_stopped(of_slides, slide, sees_dark, tmp_path, caplog):
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"no slide")
    good = tmp_path / "TCGA-AA-0001-01Z-00-DX1.svs"
    shutil.copy(slide, good)
    with pytest.raises(CohortError, match=r"1 of 3 images could not be segmented: 'bad\.svs'"):
        predict(of_slides, [bad, slide, good], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.geojson")) == [
        f"{slide.stem}.geojson", f"{good.stem}.geojson"
    ]  # fmt: skip
    for path in (tmp_path / "out").rglob(f"{good.stem}*.*"):
        path.unlink()
    before = (tmp_path / "out" / f"{slide.stem}.geojson").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="mgi"):
        predict(of_slides, [slide, good], tmp_path / "out")
    assert f"{slide.name} is complete already" in caplog.text
    assert (tmp_path / "out" / f"{slide.stem}.geojson").stat().st_mtime_ns == before
    assert (tmp_path / "out" / f"{good.stem}.geojson").exists()
    with pytest.raises(CohortError, match="1 case ids for 2 images"):
        predict(of_slides, [slide, good], tmp_path / "out", expression=tmp_path / "e", case_id=["A"])


def test_rejects_two_images_of_one_name(of_slides, slide, sees_dark, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(slide, tmp_path / "other")
    with pytest.raises(ConfigError, match="have one name: segment them one by one, each with its own --output"):
        predict(of_slides, [slide, tmp_path / "other" / slide.name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_slides_of_one_file_name_are_named_as_they_were_tiled(of_slides, slide, sees_dark, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(slide, tmp_path / "other")
    slides, out = [slide, tmp_path / "other" / slide.name], tmp_path / "out"
    stated = {"S2": StatedSlide(mpp=0.25)}
    predict(of_slides, slides, out, names=["S1", "S2"], options=PredictOptions(stated=stated))
    assert sorted(path.name for path in out.glob("*.*")) == ["S1.geojson", "S1.png", "S2.geojson", "S2.png"]
    sizes = [tifffile.TiffFile(out / "masks" / f"{name}_mask.tiff").pages[0].shape for name in ("S1", "S2")]
    assert sizes[0] != sizes[1], "the mpp that is stated of a slide is found by its name"
    with pytest.raises(CohortError, match="1 names for 2 images"):
        predict(of_slides, slides, tmp_path / "more", names=["S1"])


def test_specks_below_the_smallest_area_are_left_out(of_slides, tmp_path, sees_dark):
    pixels = np.full((600, 600, 3), (220, 150, 200), np.uint8)
    pixels[100:200, 100:200] = (90, 30, 110)  # 50 x 50 microns at 0.5 to a pixel
    pixels[300:340, 300:340] = (90, 30, 110)  # 20 x 20
    write_svs(pixels, tmp_path / "slide.svs")
    found = {}
    for min_area in (0, 1000, 5000):
        options = PredictOptions(min_area=min_area)
        predict(of_slides, tmp_path / "slide.svs", tmp_path / str(min_area), options=options)
        outlines = json.loads((tmp_path / str(min_area) / "slide.geojson").read_text())["features"]
        found[min_area] = len(outlines)
    assert found == {0: 2, 1000: 1, 5000: 0}


def test_model_may_be_a_variants_folder(finetuned, slide, sees_dark, tmp_path, caplog):
    caplog.set_level("INFO")
    of_mpp(finetuned, 1.0, tmp_path / "mgi" / "fold0")
    predict(tmp_path / "mgi", slide, tmp_path / "only-fold")
    of_mpp(finetuned, 1.0, tmp_path / "mgi" / "fold1")
    predict(tmp_path / "mgi", slide, tmp_path / "both-folds")
    assert "the mean of the 2 models beside it is used, fold0, fold1" in caplog.text
    shutil.rmtree(tmp_path / "mgi" / "fold1")
    of_mpp(finetuned, 0.5, tmp_path / "mgi" / "fold1")
    with pytest.raises(CheckpointError, match=r"fold0 and fold1 differ in 'mpp', so their mean has no meaning"):
        predict(tmp_path / "mgi", slide, tmp_path / "two-kinds")
    of_mpp(finetuned, 1.0, tmp_path / "mgi" / "all")
    predict(tmp_path / "mgi", slide, tmp_path / "all")
    assert all((tmp_path / name / f"{slide.stem}.png").exists() for name in ("only-fold", "both-folds", "all"))


def test_slide_is_normalised_as_the_training_set_was(of_slides, slide, tmp_path, monkeypatch):
    config = json.loads((of_slides / "config.json").read_text())
    asked = []

    def tile(slides, cases, table, options, **rest):
        asked.append(options.stain)
        raise SlideError("enough")

    monkeypatch.setattr(stage, "tile_slides", tile)
    for stain in (None, "macenko"):
        (of_slides / "config.json").write_text(json.dumps(config | {"stain": stain}))
        with pytest.raises(SlideError, match="enough"):
            predict(of_slides, slide, tmp_path / "out")
    assert asked == [None, "macenko"]


def test_images_of_another_stain_are_refused(finetuned, cohort, tmp_path):
    description = checkpoint.load(finetuned).description
    images = read_images(cohort.sources, set(CASES))
    images.stain = "macenko"
    with pytest.raises(CheckpointError, match=r"images of stain normalisation macenko and .* trained on none"):
        checkpoint.check_images(description, images, finetuned, "here")


@pytest.mark.parametrize(("key", "value"), [("stain", "macenko"), ("unit", "z-score")])
def test_folds_of_other_images_or_profiles_are_not_averaged(finetuned, tmp_path, key, value):
    for fold in range(2):
        of_mpp(finetuned, 1.0, tmp_path / f"fold{fold}")
    path = tmp_path / "fold1/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(CheckpointError, match=f"fold0 and fold1 differ in '{key}', so their mean has no meaning"):
        load_segmenter(tmp_path)


def test_missing_gene_is_set_to_the_mean_over_the_folds(finetuned, write, tmp_path):
    for fold in range(2):
        of_mpp(finetuned, 1.0, tmp_path / f"mgi/fold{fold}")
    path = tmp_path / "mgi/fold1/model.safetensors"
    weights = load_file(path)
    weights["gene_encoder.mean"] += 2
    save_file(weights, path)
    model = load_segmenter(tmp_path / "mgi")
    genes = len(model.description.genes)
    other = write(tmp_path / "other", genes=genes - 1)
    profiles = read_profiles_for(model, other.expression, tmp_path / "mgi", set(CASES))
    torch.testing.assert_close(profiles.values[:, -1], (weights["gene_encoder.mean"][-1] - 1).expand(len(profiles.row)))


def test_evaluation_on_the_training_patients_is_warned_of(finetuned, cohort, tmp_path, caplog):
    evaluate_tables(finetuned, [cohort.folder / "images" / "all.parquet"], cohort.expression, tmp_path, 100)
    assert f"was trained on {first_few(CASES[:6])}" in caplog.text


def test_decision_of_several_folds_is_their_median_and_their_patients_are_all_known(finetuned, tmp_path):
    for fold, (threshold, case) in enumerate([(0.3, "A"), (0.7, "B"), (0.6, "C")]):
        of_mpp(finetuned, 1.0, tmp_path / f"fold{fold}")
        config = json.loads((tmp_path / f"fold{fold}" / "config.json").read_text())
        config |= {"threshold": threshold, "cases": [case], "uses_genes": fold == 1}
        (tmp_path / f"fold{fold}" / "config.json").write_text(json.dumps(config))
    description = load_segmenter(tmp_path).description
    assert (description.threshold, description.uses_genes, description.cases) == (0.6, True, ["A", "B", "C"])


def test_patients_of_the_training_set_are_named_in_a_warning(of_slides, slide, sees_dark, tmp_path, caplog):
    config = json.loads((of_slides / "config.json").read_text())
    assert config["cases"] == CASES[:6]
    predict(of_slides, slide, tmp_path / "trained")
    assert f"was trained on '{slide.name[:12]}'" in caplog.text
    caplog.clear()
    (of_slides / "config.json").write_text(json.dumps(config | {"cases": ["TCGA-ZZ-0000"]}))
    predict(of_slides, slide, tmp_path / "new")
    assert "was trained on" not in caplog.text


def test_package_predicts_as_the_command_does(of_slides, slide, sees_dark, tmp_path):
    mgi.predict(of_slides, slide, tmp_path / "out")
    assert (tmp_path / "out" / f"{slide.stem}.geojson").exists()
