"""Embedding a fold's test patients, and one model on a table it has never seen."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import mgi
from mgi.errors import CheckpointError, ConfigError
from mgi.evaluate.predict import evaluate_table
from mgi.evaluate.retrieval import embed
from mgi.prepare.images import decode_mask
from mgi.train import inference
from mgi.train.data import Images, read_images, read_profiles, to_tensor
from tests.tables import CASES, IMAGES, patient_dice, write_cohort


def test_embeddings_hold_the_test_patients_images_and_genes_as_the_model_sees_them(cohort, pretrained, tmp_path):
    embed(pretrained, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "embeddings.parquet")
    table = pq.read_table(tmp_path / "embeddings.parquet").to_pandas()
    assert table.groupby("kind").size().to_dict() == {"image": 2 * IMAGES, "gene": 2}
    genes = table[table.kind == "gene"]
    assert genes.case_id.tolist() == CASES[6:] and genes.source_id.isna().all()
    with torch.inference_mode():
        expected = mgi.load(pretrained).embed_genes(read_profiles(cohort.expression).of(CASES[6:])[0])
    np.testing.assert_allclose(np.stack(genes.vector), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.stack(table.vector), axis=1), 1, rtol=1e-5)


def test_embeddings_do_not_depend_on_the_batches_they_were_made_in(cohort, pretrained, tmp_path, monkeypatch):
    seen, tables = [], []
    model, load = mgi.load(pretrained), Images.load
    monkeypatch.setattr(Images, "load", lambda self, rows: seen.append(len(rows)) or load(self, rows))
    for batch in (32, 5):
        monkeypatch.setattr(inference, "BATCH", batch)
        embed(pretrained, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")
        tables.append(np.stack(pq.read_table(tmp_path / "e.parquet")["vector"].to_numpy()))
    np.testing.assert_allclose(*tables, atol=1e-6)
    assert seen == [12, 5, 5, 2]
    genes = inference.embed_genes(model, read_profiles(cohort.expression), CASES[:3], torch.device("cpu"))
    assert genes.shape == (3, 8)


def test_embedding_refuses_other_genes_and_fine_tuned_models(cohort, pretrained, finetuned, tmp_path):
    other = write_cohort(tmp_path / "other", genes=44)
    with pytest.raises(CheckpointError, match="trained on 40 genes and the expression table has 44"):
        embed(pretrained, other.sources, other.expression, other.splits, 0, tmp_path / "e.parquet")
    with pytest.raises(CheckpointError, match="embeddings come from a pre-trained one"):
        embed(finetuned, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")


def test_external_validation_measures_every_patient_of_a_table(cohort, finetuned, tmp_path):
    table = cohort.folder / "images" / "all.parquet"
    evaluate_table(finetuned, table, cohort.expression, tmp_path, 100)
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
    evaluate_table(segmenter, cohort.folder / "images" / "all.parquet", cohort.expression, tmp_path / "out", 100)
    assert (tmp_path / "out" / "summary.json").exists()
    embed(aligner, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet")
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        embed(aligner, cohort.sources, cohort.expression, cohort.splits, 0, tmp_path / "e.parquet", device="cuda")


def test_the_device_is_no_part_of_a_model(finetuned, pretrained):
    for folder in (finetuned, pretrained):
        assert "device" not in json.loads((folder / "config.json").read_text())["options"]


def test_genes_matter_to_external_validation_and_may_be_absent(cohort, finetuned, tmp_path):
    table = cohort.folder / "images" / "all.parquet"
    evaluate_table(finetuned, table, cohort.expression, tmp_path / "with", 100)
    evaluate_table(finetuned, table, None, tmp_path / "without", 100)
    first, second = (
        pq.read_table(tmp_path / name / "predictions.parquet")["prediction"] for name in ("with", "without")
    )
    assert first != second


def test_a_model_refuses_another_unit_of_expression_and_other_mpp(cohort, pretrained, finetuned, tmp_path):
    scores = write_cohort(tmp_path / "scores", unit="z-score")
    with pytest.raises(CheckpointError, match=r"trained on log2\(TPM\+1\) and the expression table holds z-score"):
        evaluate_table(finetuned, cohort.folder / "images" / "all.parquet", scores.expression, tmp_path, 100)
    with pytest.raises(CheckpointError, match="the expression table holds z-score"):
        embed(pretrained, scores.sources, scores.expression, scores.splits, 0, tmp_path / "e.parquet")
    coarse = write_cohort(tmp_path / "coarse", mpp=0.5)
    with pytest.raises(CheckpointError, match=r"images of 0\.5 mpp and the model in .* was trained on 0\.37"):
        evaluate_table(finetuned, coarse.folder / "images" / "all.parquet", cohort.expression, tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"images of 0\.5 mpp and the model in .* was trained on 0\.37"):
        embed(pretrained, coarse.sources, coarse.expression, coarse.splits, 0, tmp_path / "e.parquet")


def test_a_table_that_states_no_unit_and_no_mpp_is_taken_at_its_word(finetuned, tmp_path):
    other = write_cohort(tmp_path / "other", unit=None, mpp=None)
    evaluate_table(finetuned, other.folder / "images" / "all.parquet", other.expression, tmp_path / "out", 100)
    assert (tmp_path / "out" / "summary.json").exists()


def test_external_validation_refuses_other_genes(cohort, finetuned, tmp_path):
    other = write_cohort(tmp_path / "other", genes=44)
    with pytest.raises(CheckpointError, match="trained on 40 genes and the expression table has 44"):
        evaluate_table(finetuned, cohort.folder / "images" / "all.parquet", other.expression, tmp_path, 100)


def test_each_patients_genes_are_encoded_once_whatever_the_order_of_its_images(
    cohort, finetuned, tmp_path, monkeypatch
):
    model, device = mgi.load(finetuned), torch.device("cpu")
    images, profiles = read_images(cohort.sources, set(CASES)), read_profiles(cohort.expression)
    frame = images.frame.assign(encoded=images.encoded, masks=images.masks, positive=images.positive)
    frame = frame.sample(frac=1, random_state=0, ignore_index=True)
    shuffled = Images(
        frame[images.frame.columns], frame.encoded.tolist(), frame.masks.tolist(), frame.positive.to_numpy()
    )
    values, present = profiles.of(frame.case_id.tolist())
    inputs = to_tensor(shuffled.load(np.arange(len(shuffled))), device)
    with torch.inference_mode():
        expected = model(inputs, values, torch.arange(len(shuffled)), present).sigmoid().numpy()
    encoded, encode = [], model.encode_genes
    monkeypatch.setattr(model, "encode_genes", lambda values: encoded.append(len(values)) or encode(values))
    monkeypatch.setattr(inference, "BATCH", 7)
    found = np.zeros_like(expected)
    for rows, probability in inference.predict_probabilities(model, shuffled, profiles, device):
        found[rows] = probability
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(encoded) == len(CASES)
    inference.write_predictions(model, [shuffled], profiles, 0, 0.5, device, tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert table.case_id.tolist() == frame.case_id.tolist()
    written = np.stack([decode_mask(png) for png in table.prediction])
    assert (written == (found >= 0.5)).mean() > 0.999


def test_a_pretrained_model_is_not_evaluated_as_a_segmenter(cohort, pretrained, tmp_path):
    with pytest.raises(CheckpointError, match="holds a pre-trained model; give a fine-tuned one"):
        evaluate_table(pretrained, cohort.folder / "images" / "all.parquet", None, tmp_path, 100)


def test_images_of_another_size_are_refused(cohort, finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.tables.PX", 48)
    other = write_cohort(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"holds images of 48 px and the model in .* was trained on 32 px"):
        evaluate_table(finetuned, other.folder / "images" / "all.parquet", None, tmp_path, 100)
