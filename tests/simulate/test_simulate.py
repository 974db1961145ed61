"""The simulated cohort: its formats, its determinism and its planted truth."""

import gzip
import hashlib
import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely

from mgi.errors import ConfigError
from mgi.simulate import cohort as simulate
from mgi.simulate import genes as gene_model
from mgi.simulate import tissue

TINY = {"cases": 4, "seed": 7, "genes": 1000, "slide_px": 512}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def star_tables(folder: Path) -> dict[str, pd.DataFrame]:
    paths = sorted(folder.glob("data/*/*.tsv"))
    return {path.name: pd.read_csv(path, sep="\t", comment="#") for path in paths}


def union_lengths(gtf: Path) -> dict[str, int]:
    """Exon-union lengths, base by base: slow and plainly right."""
    bases: dict[str, set[int]] = defaultdict(set)
    for line in gzip.decompress(gtf.read_bytes()).decode().splitlines():
        if not line.startswith("#") and (columns := line.split("\t"))[2] == "exon":
            gene = re.search(r'gene_id "([^"]+)"', columns[8])[1]
            bases[gene].update(range(int(columns[3]), int(columns[4]) + 1))
    return {gene: len(covered) for gene, covered in bases.items()}


def test_same_seed_same_bytes_for_any_number_of_workers(cohort, tmp_path):
    simulate.simulate_cohort(tmp_path / "again", **TINY, workers=2)
    assert digests(tmp_path / "again") == digests(cohort)


def test_slides_do_not_depend_on_the_effect_of_the_switch(cohort, tmp_path):
    simulate.simulate_cohort(tmp_path / "null", **TINY, workers=1, switch_sd=0.0)
    for path in cohort.glob("data/*/*.svs"):
        assert (tmp_path / "null" / path.relative_to(cohort)).read_bytes() == path.read_bytes()


def test_fewer_switch_genes_are_a_part_of_the_module(cohort, tmp_path):
    simulate.simulate_cohort(tmp_path / "few", **{**TINY, "cases": 2}, workers=1, switch_genes=10)
    modules = [
        pd.read_parquet(folder / "truth_genes.parquet").set_index("gene_id") for folder in (cohort, tmp_path / "few")
    ]
    whole, few = (table[table.module == "switch"] for table in modules)
    assert len(few) == 10 and few.equals(whole.loc[few.index])
    assert modules[1].query("module != 'switch'").equals(modules[0].query("module != 'switch'"))


def test_second_truth_is_decided_by_a_look_factor_that_the_tissue_shows_faintly():
    first, second = (simulate._patients(3, 40, tumour_by, 2.0) for tumour_by in ("bit", "look"))
    for before, after in zip(first, second, strict=True):
        assert (before.look == after.look).all() and (before.shown == before.look).all()
        assert after.shown[simulate.FAINT_FACTOR] == 0.25 * after.look[simulate.FAINT_FACTOR]
        others = np.arange(6) != simulate.FAINT_FACTOR
        assert (after.shown[others] == after.look[others]).all()
    factor = np.array([patient.look[simulate.FAINT_FACTOR] for patient in second])
    bits = np.array([patient.bit for patient in second])
    assert bits.sum() == 20 and factor[bits == 1].min() > factor[bits == 0].max()


def test_seed_changes_slides_and_counts(cohort, tmp_path):
    simulate.simulate_cohort(tmp_path / "other", **{**TINY, "cases": 2, "seed": 8}, workers=1)
    assert not set(digests(tmp_path / "other").values()) & {
        digest for name, digest in digests(cohort).items() if name.startswith(("data", "annotations"))
    }


def test_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        simulate.simulate_cohort(tmp_path, **TINY, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_partial_cohort_is_overwritten(own_cohort, cohort):
    (own_cohort / "manifest.tsv").unlink()
    (own_cohort / "data" / "left-over").mkdir()
    simulate.simulate_cohort(own_cohort, **TINY, workers=1)
    assert digests(own_cohort) == digests(cohort)


def test_manifest_states_the_true_md5_and_size_of_every_file(cohort):
    manifest = pd.read_csv(cohort / "manifest.tsv", sep="\t")
    assert list(manifest.columns) == ["id", "filename", "md5", "size", "state"]
    assert len(manifest) == len(list(cohort.glob("data/*/*")))
    for row in manifest.itertuples():
        content = (cohort / "data" / row.id / row.filename).read_bytes()
        assert (len(content), hashlib.md5(content).hexdigest()) == (row[4], row.md5)


def test_slides_open_as_aperio_with_half_a_micron_per_pixel(cohort):
    slides = list(cohort.glob("data/*/*.svs"))
    assert slides
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
            assert slide.properties["openslide.objective-power"] == "20"
            assert slide.dimensions == (512, 512)
            assert slide.level_count > 1


def test_slide_names_and_barcodes_are_those_of_tcga(cohort):
    cases = pd.read_parquet(cohort / "truth.parquet").case_id
    assert cases.str.fullmatch(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}").all()
    for path in cohort.glob("data/*/*.svs"):
        assert re.fullmatch(r"TCGA-\w\w-\w{4}-01Z-00-DX\d\.[0-9A-F-]{36}\.svs", path.name)
        assert path.name[:12] in set(cases)
        assert (cohort / "annotations" / f"{path.name.split('.')[0]}.geojson").is_file()


def test_star_tables_have_the_layout_of_a_real_one(cohort, data_dir):
    real = next(data_dir.glob("gdc/*.augmented_star_gene_counts.tsv.gz"))
    with gzip.open(real, "rt") as handle:
        expected = [next(handle) for _ in range(6)]
    for path in cohort.glob("data/*/*.tsv"):
        lines = path.read_text().splitlines(keepends=True)
        assert lines[:2] == expected[:2]
        for line, model in zip(lines[2:6], expected[2:6], strict=True):
            assert re.sub(r"\d+", "n", line) == re.sub(r"\d+", "n", model)
        assert re.fullmatch(r"ENSG\d{11}\.\d+\t\w+\t\w+(\t\d+){3}(\t\d+\.\d{4}){3}\n", lines[6])
        assert len(lines) == 6 + TINY["genes"]


def test_tpm_follows_from_counts_and_exon_union_lengths(cohort):
    lengths = union_lengths(cohort / "data" / simulate.ANNOTATION_FILE_ID / simulate.ANNOTATION_NAME)
    for table in star_tables(cohort).values():
        genes = table.iloc[4:]
        rate = genes.unstranded / genes.gene_id.map(lengths)
        np.testing.assert_allclose(genes.tpm_unstranded, rate / rate.sum() * 1e6, rtol=1e-6, atol=6e-5)
        assert genes.tpm_unstranded.sum() == pytest.approx(1e6, abs=1)
        coding = genes.unstranded[genes.gene_type == "protein_coding"].sum()
        np.testing.assert_allclose(genes.fpkm_unstranded, rate * 1e9 / coding, rtol=1e-6, atol=6e-5)
        assert (genes.stranded_first + genes.stranded_second == genes.unstranded).all()


def test_par_y_twins_collide_once_the_version_is_stripped(cohort):
    genes = next(iter(star_tables(cohort).values())).iloc[4:]
    twins = genes[genes.gene_id.str.endswith("_PAR_Y")]
    assert len(twins) == gene_model.PAR_Y_GENES
    assert set(twins.gene_id.str.removesuffix("_PAR_Y")) < set(genes.gene_id)
    assert genes.gene_id.is_unique


def test_modules_are_scattered_protein_coding_genes_of_the_stated_sizes(cohort):
    planted = pd.read_parquet(cohort / "truth_genes.parquet")
    sizes = planted.module.value_counts().to_dict()
    assert sizes == {f"look_{factor}": 100 for factor in range(6)} | {"switch": 200}
    genes = next(iter(star_tables(cohort).values())).iloc[4:].set_index("gene_id")
    assert (genes.gene_type[planted.gene_id] == "protein_coding").all()
    assert planted.groupby("module").sign.mean().abs().max() < 0.4


@pytest.mark.parametrize("switch_sd", [2.0, 0.5, 0.0])
def test_genes_tell_factors_and_bit_as_strongly_as_stated(switch_sd):
    genes, _ = gene_model.draw_genes(0, 2000)
    patients = simulate._patients(0, 400)
    counts = np.stack(
        [gene_model.draw_counts(gene_model.make_rng(0, 5, p.index), p.look, p.bit, genes, switch_sd) for p in patients]
    )
    log_counts = np.log2(np.maximum(counts, 0.5)) - np.log2(counts.sum(axis=1, keepdims=True))
    bits = np.array([patient.bit for patient in patients])
    look = np.stack([patient.look for patient in patients])

    switch = (genes.module == "switch").to_numpy()
    signed = log_counts[:, switch] * genes.sign.to_numpy()[switch]
    within = np.sqrt((signed[bits == 0].var(axis=0) + signed[bits == 1].var(axis=0)) / 2)
    difference = (signed[bits == 1].mean(axis=0) - signed[bits == 0].mean(axis=0)) / within
    assert difference.mean() == pytest.approx(switch_sd, rel=0.1, abs=0.03)

    for factor in range(tissue.LOOK_FACTORS):
        module = (genes.module == f"look_{factor}").to_numpy()
        signed = log_counts[:, module] * genes.sign.to_numpy()[module]
        slope = np.cov(look[:, factor], signed.mean(axis=1))[0, 1] / look[:, factor].var()
        rest = signed - np.outer(look[:, factor], [slope] * 100)
        assert slope / np.median(rest.std(axis=0)) == pytest.approx(gene_model.LOOK_LOADING, rel=0.15)


def test_bit_is_balanced_and_independent_of_the_look():
    patients = simulate._patients(3, 4000)
    bits = np.array([patient.bit for patient in patients])
    assert bits.sum() == 2000
    look = np.stack([patient.look for patient in patients])
    assert np.abs(np.corrcoef(bits, look.T)[0, 1:]).max() < 0.05
    assert abs(np.corrcoef(bits, [patient.slides for patient in patients])[0, 1]) < 0.05


@pytest.mark.parametrize("px", [512, 770, 1025])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_textures_cover_equal_areas_of_every_slide(px, seed):
    rng = np.random.default_rng(seed)
    pixels, regions = tissue.draw_slide(rng, rng.standard_normal(6), px)
    assert pixels.shape == (px, px, 3)
    areas = {texture: int((regions == texture).sum()) for texture in (tissue.TEXTURE_A, tissue.TEXTURE_B)}
    assert areas[tissue.TEXTURE_A] == areas[tissue.TEXTURE_B] > 0.08 * regions.size
    border = np.r_[regions[0], regions[-1], regions[:, 0], regions[:, -1]]
    assert not border.any()


def test_annotation_covers_the_texture_that_the_bit_names_exactly(cohort):
    for patient in simulate._patients(TINY["seed"], TINY["cases"]):
        rng = gene_model.make_rng(TINY["seed"], 6, patient.index, 1)
        _, regions = tissue.draw_slide(rng, patient.look, TINY["slide_px"])
        text = (cohort / "annotations" / f"{patient.case_id}-01Z-00-DX1.geojson").read_text()
        feature = json.loads(text)["features"][0]
        assert feature["properties"]["classification"]["name"] == "Tumor"
        tumour = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert tumour.is_valid
        rows, columns = np.indices(regions.shape)
        scale = tissue.MAP_SCALE
        inside = shapely.contains_xy(tumour, (columns + 0.5) * scale, (rows + 0.5) * scale)
        named = tissue.TEXTURE_A if patient.bit == 0 else tissue.TEXTURE_B
        np.testing.assert_array_equal(inside, regions == named)
        assert tumour.area == scale**2 * (regions == named).sum()


def test_outline_keeps_holes_and_corners():
    mask = np.zeros((6, 8), bool)
    mask[0:4, 0:4] = True
    mask[1, 1] = False
    mask[4:6, 4:7] = True
    geometry = simulate.outline(mask, 4)
    shape = shapely.from_geojson(json.dumps(geometry))
    assert shape.is_valid
    assert shape.area == mask.sum() * 16
    assert sum(len(polygon) - 1 for polygon in geometry["coordinates"]) == 1


def painted(factor: int, value: float) -> tuple[np.ndarray, np.ndarray]:
    factors = np.zeros(6)
    factors[factor] = value
    return tissue.draw_slide(np.random.default_rng(5), factors, 768)


@pytest.mark.parametrize(
    ("factor", "measure"),
    [
        (0, lambda pixels: pixels[..., 0].mean() - pixels[..., 2].mean()),
        (1, lambda pixels: -pixels[..., 1].mean()),
        (2, lambda pixels: (pixels[..., 0] < 130).mean()),
        (5, lambda pixels: (pixels.min(axis=-1) > 225).mean()),
    ],
)
def test_look_factor_moves_the_tissue_and_saturates(factor, measure):
    tissue_only = slice(150, -150)
    seen = [measure(painted(factor, value)[0][tissue_only, tissue_only].astype(float)) for value in (-2, -1, 0, 1, 2)]
    assert (np.diff(seen) > 0).all(), seen
    np.testing.assert_array_equal(painted(factor, 2)[0], painted(factor, 3)[0])


def test_nuclear_size_and_fibre_wavelength_grow_with_their_factors():
    looks = [tissue.Look.from_factors(np.full(6, value)) for value in (-3, -2, 0, 2, 3)]
    for name in ("nuclear_radius_px", "fibre_px"):
        low, two_low, middle, two_high, high = (getattr(look, name) for look in looks)
        assert low == two_low < 0.75 * middle < middle < 0.75 * two_high < two_high == high


def test_textures_are_alike_in_colour_and_unlike_in_structure():
    pixels, regions = tissue.draw_slide(np.random.default_rng(2), np.zeros(6), 2048)
    kind = np.kron(regions, np.ones((4, 4), np.uint8))
    means = [pixels[kind == texture].mean(axis=0) for texture in (tissue.TEXTURE_A, tissue.TEXTURE_B)]
    assert np.abs(means[0] - means[1]).max() < 15
    red = pixels[..., 0].astype(float)
    power = []
    for texture in (tissue.TEXTURE_A, tissue.TEXTURE_B):
        tiles = [
            red[y : y + 64, x : x + 64]
            for y in range(0, 1984, 32)
            for x in range(0, 1984, 32)
            if (kind[y : y + 64, x : x + 64] == texture).all()
        ]
        spectrum = np.mean([np.abs(np.fft.fft2(tile - tile.mean())) ** 2 for tile in tiles], axis=0)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
        power.append(spectrum[np.abs(frequency * tissue.CORD_PERIOD_PX - 1) < 0.35].sum() / spectrum.sum())
    assert power[1] > 2 * power[0], power


def test_pixels_do_not_depend_on_the_bit(tmp_path):
    genes, _ = gene_model.draw_genes(1, 1000)
    patient = simulate._patients(1, 2)[0]
    made = []
    for bit in (0, 1):
        records = simulate._write_patient(replace(patient, bit=bit), tmp_path / str(bit), 1, genes, 512)
        made.append({record["file_name"]: record["md5sum"] for record in records})
    slides = [{name: md5 for name, md5 in files.items() if name.endswith(".svs")} for files in made]
    assert slides[0] == slides[1]
    assert made[0] != made[1]
