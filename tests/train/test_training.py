"""Training runs: determinism, resuming, selection, checkpoints that are refused, what is written."""

import csv
import json
import shutil
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mgi
from mgi.codecs import decode_image, decode_mask, encode_mask, encode_png
from mgi.config import FinetuneOptions
from mgi.errors import CheckpointError, CohortError, MissingInputError, TrainingError
from mgi.evaluate.external import evaluate_tables
from mgi.model.backbone import ImageNetPath
from mgi.model.gene_encoder import GeneEncoder
from mgi.tables import write_table
from mgi.train import checkpoint
from mgi.train import finetune as stage
from mgi.train.batches import to_tensor
from mgi.train.data import read_images
from mgi.train.decision import TEMPERATURES, Decision
from mgi.train.device import Place
from mgi.train.distributed import Ranks
from mgi.train.finetune import ImageBatches, _read_profiles, finetune
from mgi.train.loop import TrainingRun, learning_rate, parameter_groups
from mgi.train.pretrain import PatientBatches, _validate, pretrain
from mgi.train.profiles import NO_PROFILES, read_profiles
from mgi.train.resume import LAST
from mgi.train.validation import predict_probabilities, score
from tests.tables import CASES, IMAGES, SITES, UNPAIRED, patient_dice

CPU = Place(torch.device("cpu"))


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_same_seed_same_bytes(cohort, pretrained, pretrain_options, tmp_path):
    paths = (cohort.sources, cohort.expression, cohort.splits, "0")
    pretrain(pretrain_options, *paths, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(pretrained)
    pretrain(pretrain_options.model_copy(update={"seed": 1}), *paths, tmp_path / "other")
    assert weights(tmp_path / "other") != weights(pretrained)


def test_does_not_resume_another_configuration(cohort, pretrained, finetune_options, tmp_path, monkeypatch, caplog):
    paths = (cohort.sources, cohort.expression, cohort.splits, "0", pretrained)
    finish = TrainingRun.finish
    monkeypatch.setattr(TrainingRun, "finish", lambda self: None)
    finetune(finetune_options(lr=5e-4), *paths, tmp_path / "a")
    monkeypatch.setattr(TrainingRun, "finish", finish)
    assert (tmp_path / "a" / LAST).exists()
    finetune(finetune_options(lr=1e-3), *paths, tmp_path / "a")
    finetune(finetune_options(lr=1e-3), *paths, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# What is changed in a table, and in which row: the images of a case are six, validation cases come fifth and sixth.
CORRECTIONS = {
    "nothing": ("images/all.parquet", "image", lambda png: png),
    "validation image": ("images/all.parquet", "image", lambda png: encode_png(255 - decode_image(png))),
    "image": ("images/all.parquet", "image", lambda png: encode_png(255 - decode_image(png))),
    "mask": ("images/all.parquet", "mask", lambda png: encode_mask(1 - decode_mask(png))),
    "expression": ("expression.parquet", "values", lambda values: [values[0] + 1, *values[1:]]),
}


@pytest.mark.parametrize("corrected", CORRECTIONS)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_resumes_on_the_same_data_only(
    stage, corrected, cohort, pretrain_options, finetune_options, tmp_path, monkeypatch
):
    data = shutil.copytree(cohort.folder, tmp_path / "data")
    paths = (data / "sources.parquet", data / "expression.parquet", data / "splits.parquet", "0")
    steps = steps_done(monkeypatch)
    monkeypatch.setattr(TrainingRun, "finish", lambda self: None)

    def run():
        if stage == "pretrain":
            pretrain(pretrain_options, *paths, tmp_path / "run")
        else:
            finetune(finetune_options(), *paths, None, tmp_path / "run")

    run()
    name, column, change = CORRECTIONS[corrected]
    table = pq.read_table(data / name)
    field, cells = table.schema.field(column), table[column].to_pylist()
    row = 4 * IMAGES + 1 if corrected.startswith("validation") else 1
    cells[row] = change(cells[row])
    write_table(table.set_column(table.schema.get_field_index(column), field, pa.array(cells, field.type)), data / name)
    steps.clear()
    run()
    assert steps == ([] if corrected == "nothing" else [0, 1, 2, 3, 4, 5])


def steps_done(monkeypatch):
    """A list that grows by each step of a training run."""
    steps, update = [], TrainingRun._update
    monkeypatch.setattr(
        TrainingRun, "_update", lambda self, step, *rest: steps.append(step) or update(self, step, *rest)
    )
    return steps


def test_metrics_have_a_row_per_validation(finetuned):
    rows = list(csv.DictReader((finetuned / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert {"step", "loss", "lr", "images_per_second", "val_loss", "val_dice"} < set(rows[0])
    assert {"val_threshold", "val_min_component", "val_temperature"} < set(rows[0]) and len(rows[0]) == 9


def test_predictions_cover_the_test_images_with_their_references(finetuned, cohort):
    table = pq.read_table(finetuned / "predictions.parquet").to_pandas()
    assert sorted(table.case_id.unique()) == CASES[6:] and len(table) == 2 * IMAGES
    config = json.loads((finetuned / "config.json").read_text())
    model, images = mgi.load(finetuned), read_images(cohort.sources, set(CASES[6:]))
    batches = predict_probabilities(model, images, read_profiles(cohort.expression), CPU)
    probability = np.concatenate([part for _, part in batches])
    # These are slices of series, so each has its own threshold.
    assert config["temperature"] in TEMPERATURES and images.has_series
    decision = Decision(config["threshold"], config["min_component"], temperature=config["temperature"])
    masks = [decision.apply(volume, is_series=True) for volume in np.split(probability, 2)]
    for row, expected in zip(table.itertuples(), np.concatenate(masks), strict=True):
        assert (decode_mask(row.prediction) == expected).all()
    assert table.reference.tolist() == images.masks


def test_pretrained_encoders_and_their_standardisation_reach_the_segmenter(
    pretrained, cohort, finetune_options, tmp_path
):
    options = finetune_options(steps=1, encoder_lr_scale=0.0)
    finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", pretrained, tmp_path)
    source, target = mgi.load(pretrained).state_dict(), mgi.load(tmp_path).state_dict()
    shared = [name for name in source if name in target]
    assert any(name.startswith("image_encoder") for name in shared) and "gene_encoder.mean" in shared
    assert all(torch.equal(source[name], target[name]) for name in shared)


def test_standardisation_is_fitted_on_paired_training_patients_only(cohort, finetune_options, tmp_path):
    options = finetune_options(steps=1)
    finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)
    profiles = read_profiles(cohort.expression)
    train = [case for case in CASES[:4] if case != UNPAIRED]
    torch.testing.assert_close(mgi.load(tmp_path).gene_encoder.mean, profiles.of(train)[0].mean(0))


@pytest.mark.parametrize("paired", [0, 1])
def test_rejects_too_few_profiles_to_standardise(paired, cohort, finetune_options, tmp_path):
    data = shutil.copytree(cohort.folder, tmp_path / "data")
    table = pq.read_table(data / "expression.parquet")
    kept = [row for row, case in enumerate(table["case_id"].to_pylist()) if case not in CASES[paired:4]]
    write_table(table.take(kept), data / "expression.parquet")
    paths = (
        data / "sources.parquet",
        data / "expression.parquet",
        data / "splits.parquet",
        "0",
        None,
        tmp_path / "run",
    )
    with pytest.raises(CohortError, match=f"fold 0 has {paired} training patients with expression"):
        finetune(finetune_options(), *paths)
    finetune(finetune_options(steps=1, genes="none"), *paths)


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_nan_loss_or_gradient_stops_and_keeps_last_good_state(spoilt, cohort, finetune_options, tmp_path, monkeypatch):
    run = partial(finetune, finetune_options(), cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)
    loss = ImageBatches.loss

    def spoilt_at_three(self, model, step):
        value = loss(self, model, step)
        if step == 3 and spoilt == "gradient":
            value.register_hook(lambda gradient: gradient * float("nan"))
        return value * float("nan") if step == 3 and spoilt == "loss" else value

    monkeypatch.setattr(ImageBatches, "loss", spoilt_at_three)
    with pytest.raises(TrainingError, match=rf"step 4 of 6: the {spoilt} is nan.*a lower learning rate than 0\.001"):
        run()
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.load(tmp_path / LAST)["step"] == 2
    monkeypatch.setattr(ImageBatches, "loss", loss)
    steps = steps_done(monkeypatch)
    run()
    assert steps == [2, 3, 4, 5]


def test_pretraining_validates_by_loss_of_held_out_patients(cohort, pretrained, pretrain_options, monkeypatch):
    monkeypatch.setattr("mgi.train.validation.BATCH", 5)
    monkeypatch.setattr("mgi.train.pretrain.MIN_VAL_PATIENTS", 2)
    model = mgi.load(pretrained)
    images, profiles = read_images(cohort.sources, set(CASES[4:6])), read_profiles(cohort.expression)
    batches = PatientBatches(images, profiles, CASES[4:6], pretrain_options, CPU)
    score, measured = _validate(model, batches, CASES[4:6])
    pictures = to_tensor(images.load(np.arange(2 * IMAGES)), CPU.device)
    with torch.no_grad():
        expected = model(pictures, profiles.of(CASES[4:6])[0], torch.arange(2).repeat_interleave(IMAGES))
    assert measured["val_loss"] == -score[0] == pytest.approx(expected.item(), rel=1e-5)
    assert measured["val_recall"] * 2 * IMAGES == pytest.approx(round(measured["val_recall"] * 2 * IMAGES))


def test_logit_scale_is_clamped(cohort, pretrain_options, tmp_path, monkeypatch):
    build = checkpoint.build_aligner

    def beyond(*arguments):
        aligner = build(*arguments)
        torch.nn.init.constant_(aligner.logit_scale, 6.0)
        return aligner

    monkeypatch.setattr(checkpoint, "build_aligner", beyond)
    options = pretrain_options.model_copy(update={"steps": 1})
    pretrain(options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path)
    assert load_file(tmp_path / "model.safetensors")["logit_scale"].exp() <= 100.01


def test_effect_of_the_genes_starts_as_strong_as_stated(finetuned):
    description = checkpoint.load(finetuned).description
    options = description.options.model_copy(update={"gene_gate": 0.25})
    model = checkpoint.build_segmenter(description.model_copy(update={"options": options}))
    assert (model.fusion.gate == 0.25).all()


def test_profiles_of_the_site_are_read_with_the_sites_of_the_splits(cohort, finetune_options, tmp_path):
    sites = dict(zip(CASES, "SSTTSTST", strict=True))
    splits = pq.read_table(cohort.splits).to_pandas()
    write_table(splits.assign(site=splits.case_id.map(sites)), tmp_path / "splits.parquet")
    options = finetune_options(genes="site")
    roles = {"train": [*CASES[:3], CASES[5]], "test": CASES[6:]}
    found = _read_profiles(options, cohort.expression, tmp_path / "splits.parquet", roles, None, None)
    own = read_profiles(cohort.expression)
    values, _ = found.of([CASES[6], CASES[7]])
    torch.testing.assert_close(values[0], own.of(CASES[:2])[0].mean(dim=0))
    torch.testing.assert_close(values[1], own.of([CASES[2], CASES[5]])[0].mean(dim=0))
    write_table(splits.assign(site="S"), tmp_path / "one.parquet")
    with pytest.raises(CohortError, match="1 of 1 sites have two training patients with a profile or more"):
        _read_profiles(options, cohort.expression, tmp_path / "one.parquet", roles, None, None)


def test_profiles_are_shuffled_by_class_site_and_repetition(cohort, finetune_options):
    roles = {"train": CASES, "val": [], "test": []}

    def given(**changes):
        found = _read_profiles(finetune_options(**changes), cohort.expression, cohort.splits, roles, None, None)
        return {case: owner[row] for case, row in found.row.items()}

    owner = {row: case for case, row in read_profiles(cohort.expression).row.items()}
    site = dict(zip(CASES, SITES, strict=True))
    apart, again = (given(genes="shuffled", replicate=number) for number in (0, 1))
    assert sorted(apart) == sorted(again) == sorted(apart.values()) and apart != again
    within = given(genes="shuffled-within-site")
    assert sorted(within) == sorted(apart) and all(site[case] == site[other] for case, other in within.items())
    assert all(case != other for drawn in (apart, again, within) for case, other in drawn.items())


def test_repetition_has_other_batches_and_initial_weights(cohort, finetune_options, tmp_path, monkeypatch):
    images, place = read_images(cohort.sources, set(CASES), labelled=True), Place(torch.device("cpu"), torch.float32)
    drawn = []
    for replicate in (0, 1, 0):
        options = finetune_options(replicate=replicate)
        drawn.append(ImageBatches(images, NO_PROFILES, options, place)._draw(0)[0].tolist())
    assert drawn[0] == drawn[2] != drawn[1]

    def build(*_):
        drawn.append(torch.rand(1).item())
        raise CohortError("enough")

    monkeypatch.setattr("mgi.train.finetune._build_model", build)
    for replicate in (0, 1, 0):
        options = finetune_options(genes="none", vit=False, pretrained=False, replicate=replicate)
        with pytest.raises(CohortError, match="enough"):
            finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path)
    assert drawn[3] == drawn[5] != drawn[4]


def test_image_only_without_vit_has_no_encoders(cohort, finetune_options, tmp_path):
    options = finetune_options(steps=1, genes="none", vit=False)
    finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)
    model = mgi.load(tmp_path)
    assert model.gene_encoder is None and model.image_encoder is None


def test_only_variants_with_genes_need_expression(cohort, pretrained, finetune_options, tmp_path):
    def run(name, **given):
        options = finetune_options(genes="none") if name != "asks" else finetune_options()
        finetune(options, cohort.sources, given.get("expression"), cohort.splits, "0", pretrained, tmp_path / name)

    run("without")
    run("with", expression=cohort.expression)
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    assert mgi.load(tmp_path / "without").description.genes == []
    evaluate_tables(tmp_path / "without", [cohort.folder / "images"], None, tmp_path / "out", 100)
    with pytest.raises(MissingInputError, match="training with matched genes needs an expression table"):
        run("asks")


def test_fold_all_writes_no_predictions(cohort, pretrained, finetune_options, tmp_path):
    finetune(finetune_options(), cohort.sources, cohort.expression, cohort.splits, "all", None, tmp_path)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "predictions.parquet").exists()
    assert mgi.load(tmp_path).description.decision == Decision()


def test_fold_all_decides_as_the_folds(cohort, finetuned, pretrained, finetune_options, tmp_path):
    inputs = (finetune_options(), cohort.sources, cohort.expression, cohort.splits, "all", None, tmp_path / "all")
    folds = []
    for number, stated in enumerate([(0.2, 0.1, 1.0), (0.4, 1.0, 3.0), (0.9, 0.0, 2.0)]):
        folds.append(tmp_path / f"fold{number}")
        folds[-1].mkdir()
        config = json.loads((finetuned / "config.json").read_text())
        config |= dict(zip(("threshold", "min_component", "temperature"), stated, strict=True))
        (folds[-1] / "config.json").write_text(json.dumps(config))
    finetune(*inputs, folds)
    assert mgi.load(tmp_path / "all").description.decision == (0.4, 0.1, True, 2.0)
    with pytest.raises(CheckpointError, match="holds pre-trained encoders, not the fine-tuned model of a fold"):
        finetune(*inputs, [pretrained])


@pytest.mark.parametrize("network", ["unet-resnet18", "segformer-b0", "backbone"])
def test_published_network_is_trained_and_loaded(cohort, finetune_options, tmp_path, network):
    of = {"backbone": "efficientnet-lite0"} if network == "backbone" else {"network": network}
    options = finetune_options(**of, genes="none", vit=False, pretrained=False, steps=2, neighbours=1)
    finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path)
    model, images = mgi.load(tmp_path), read_images(cohort.sources, set(CASES[6:]))
    probability = np.concatenate([part for _, part in predict_probabilities(model, images, NO_PROFILES, CPU)])
    masks = [model.description.decision.apply(volume, is_series=True) for volume in np.split(probability, 2)]
    written = pq.read_table(tmp_path / "predictions.parquet")["prediction"].to_pylist()
    assert (np.stack([decode_mask(png) for png in written]) == np.concatenate(masks)).mean() > 0.999


def test_backbone_starts_from_the_published_weights(cohort, finetune_options, tmp_path):
    keys = {"genes": "none", "vit": False, "pretrained": False, "steps": 1, "lr": 1e-9, "warmup_steps": 0}
    options = finetune_options(backbone="efficientnet-lite0", **keys)
    finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path)
    published = ImageNetPath(3, options.channels)
    published.load_published_weights()
    found = mgi.load(tmp_path).path.backbone.state_dict()
    for name, value in published.backbone.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_published_network_refuses_what_it_cannot_halve_and_several_processes(
    cohort, finetune_options, tmp_path, monkeypatch
):
    options = finetune_options(network="unet-resnet18", genes="none", vit=False, pretrained=False, steps=1)
    monkeypatch.setattr(checkpoint, "HALVINGS", 6)
    with pytest.raises(CohortError, match=r"cannot be halved 6 times: use images of a multiple of 64 px$"):
        finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path)
    monkeypatch.setattr(stage, "join_ranks", lambda place: (Ranks(rank=0, world=2), place))
    with pytest.raises(CohortError, match="'unet-resnet18' normalises over a batch, and 2 processes"):
        finetune(options, cohort.sources, None, cohort.splits, "0", None, tmp_path)


def test_training_learns_the_discs(cohort, finetune_options, tmp_path):
    options = finetune_options(steps=80, val_every=40, batch_images=8, genes="none", vit=False, lr=5e-3)
    finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", None, tmp_path)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert min(patient_dice(table).values()) > 0.9


def test_rejects_table_without_many_genes_of_the_encoders(cohort, pretrained, finetune_options, write, tmp_path):
    other = write(tmp_path / "other", genes=31)
    with pytest.raises(CheckpointError, match=r"lacks 9 of the 40 genes of the model in .*, more than 20%"):
        finetune(finetune_options(), other.sources, other.expression, other.splits, "0", pretrained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rejects_encoders_of_another_shape(cohort, pretrained, finetune_options, tmp_path):
    options = finetune_options(gene_encoder={"dim": 24, "depth": 1, "stride": 8, "state_dim": 4})
    with pytest.raises(CheckpointError, match="are of another shape"):
        finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", pretrained, tmp_path)


def test_takes_shape_of_encoders_from_pretrained_model(cohort, pretrained, finetuned, finetune_options, tmp_path):
    stated = finetune_options().model_dump(exclude={"gene_encoder", "image_encoder"})
    options = FinetuneOptions(**stated)
    finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", pretrained, tmp_path)
    assert weights(tmp_path) == weights(finetuned)
    assert mgi.load(tmp_path).description.options.gene_encoder == mgi.load(pretrained).description.options.gene_encoder


def test_rejects_fine_tuned_model_as_encoders(cohort, finetuned, finetune_options, tmp_path):
    with pytest.raises(CheckpointError, match="holds a fine-tuned model"):
        finetune(finetune_options(), cohort.sources, cohort.expression, cohort.splits, "0", finetuned, tmp_path)


def test_pretraining_needs_two_paired_training_patients(cohort, pretrain_options, tmp_path):
    import pandas as pd

    roles = ["train"] + ["test"] * 2 + ["train"] + ["test"] * 4
    write_table(pd.DataFrame({"case_id": CASES, "fold": 0, "role": roles}), tmp_path / "splits.parquet")
    with pytest.raises(CohortError, match="fold 0 has 1 training patients with both images and expression"):
        pretrain(pretrain_options, cohort.sources, cohort.expression, tmp_path / "splits.parquet", "0", tmp_path)


def test_validation_scores_equal_their_definitions(cohort, finetuned):
    model, images = mgi.load(finetuned), read_images(cohort.sources, set(CASES[6:]))
    images.masks[:IMAGES] = [images.masks[0]] * IMAGES
    profiles = read_profiles(cohort.expression)
    probability = np.concatenate([part for _, part in predict_probabilities(model, images, profiles, CPU)])
    reference = images.load_masks(np.arange(len(images)))
    half = float(np.quantile(probability, 0.9))
    decisions = (Decision(0.3), Decision(half), Decision(1.1), Decision(half, 1.0))
    dice, loss = score(model, images, profiles, decisions, CPU)
    for decision, measured in zip(decisions, dice, strict=True):
        volumes = [decision.apply(volume, is_series=True) for volume in np.split(probability, 2)]
        masks = [encode_mask(mask) for mask in np.concatenate(volumes)]
        table = images.frame.assign(prediction=masks, reference=images.masks)
        assert measured == pytest.approx(np.mean(list(patient_dice(table).values())))
    assert dice[2] == 0.5, "empty beside empty is perfect, empty beside tumour worth nothing"
    assert loss == pytest.approx(-np.log(np.where(reference, probability, 1 - probability)).mean(), rel=1e-4)


def test_images_per_source_are_evenly_spread(cohort):
    images = read_images(cohort.sources, set(CASES[:2]), images_per_source=3)
    assert images.frame.groupby("source_id").z.apply(list).tolist() == [[0, 2, 5]] * 2


def test_weight_decay_leaves_out_what_timm_does(pretrained, pretrain_options):
    model = mgi.load(pretrained)
    groups = parameter_groups(model, pretrain_options)
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert "image_encoder.vit.patch_embed.proj.weight" in names and "gene_encoder.direction" in names
    assert not names & {
        "image_encoder.vit.pos_embed", "image_encoder.vit.cls_token", "gene_encoder.embedding",
        "gene_encoder.norm.bias", "gene_encoder.blocks.0.A_log",
    }  # fmt: skip


def test_encoders_learn_at_their_own_rate_but_for_the_maps_that_alignment_trains(pretrain_options):
    encoder = GeneEncoder(8, 8, 1, components=2)
    model = nn.ModuleDict({"gene_encoder": encoder, "projection": nn.Linear(8, 4)})
    groups = parameter_groups(model, pretrain_options.model_copy(update={"encoder_lr_scale": 0.1}))
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    fast = {name for name, parameter in model.named_parameters() if scales[id(parameter)] == 1}
    assert fast == {
        "gene_encoder.component_map.weight", "gene_encoder.gate", "projection.weight", "projection.bias"
    }  # fmt: skip
    assert set(scales.values()) == {0.1, 1.0}


def test_learning_rate_warms_up_and_decays(finetune_options):
    options = finetune_options(steps=100, warmup_steps=10, lr=1.0)
    rates = [learning_rate(step, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.02 and all(a >= b for a, b in pairwise(rates[10:]))
