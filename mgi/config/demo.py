"""The configuration of the simulated cohort: what of it differs from the defaults, and what is said beside it.

`config/config.yaml` is generated from this and the descriptions of the keys.
"""

from typing import Any

DEMO: dict[str, Any] = {
    "cohort": "simulated",
    "seed": 10,
    "precision": "float32",
    "simulate": {},
    "gdc": {"api_url": "local:resources/simulated", "projects": ["TCGA-SIM"]},
    "expression": {"annotation_file_id": "00000000-0000-4000-8000-000000000036"},
    "slides": {
        "mpp": 1.0,
        "tile_px": 64,
        "annotations": "resources/simulated/annotations",
        "per_job": 16,
        "keep_slides": True,
    },
    "split": {"folds": 2, "stratify_table": "resources/simulated/truth.parquet", "stratify_column": "bit"},
    "pretrain": {
        "mgi": {
            "steps": 150,
            "lr": 3e-3,
            "encoder_lr_scale": 0.05,
            "weight_decay": 0.2,
            "warmup_steps": 20,
            "val_every": 50,
            "gene_dropout": 0.5,
            "batch_patients": 20,
            "embed_dim": 32,
            "gene_encoder": {"dim": 32, "depth": 1, "stride": 2, "state_dim": 8, "components": 10},
            "image_encoder": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 8, "depth": 3, "embed_dim": 96, "num_heads": 3},
                "texture": True,
            },
        },
        "transformer": {"base": "mgi", "gene_encoder": {"kind": "transformer"}},
        "mlp": {"base": "mgi", "gene_encoder": {"kind": "mlp"}},
        "linear": {"base": "mgi", "gene_encoder": {"kind": "linear"}},
        "shuffled-order": {"base": "mgi", "gene_encoder": {"order": "shuffled-fixed"}},
        "single-images": {"base": "mgi", "bags": False},
        "no-components": {"base": "mgi", "gene_encoder": {"components": 0}},
        "no-texture": {"base": "mgi", "image_encoder": {"texture": False}},
        "shuffled-pairs": {"base": "mgi", "genes": "shuffled"},
    },
    "finetune": {
        "mgi": {
            "steps": 400,
            "lr": 4e-3,
            "channels": [8, 16, 32, 64],
        },
        "no-pretraining": {"base": "mgi", "pretrained": False},
        "image-only": {"base": "mgi", "genes": "none"},
        "image-only-no-pretraining": {"base": "image-only", "pretrained": False},
        "shuffled-genes": {"base": "mgi", "genes": "shuffled"},
        "shuffled-throughout": {"base": "shuffled-genes", "encoders": "shuffled-pairs"},
        "mgi-transformer": {"base": "mgi", "encoders": "transformer"},
        "mgi-mlp": {"base": "mgi", "encoders": "mlp"},
        "mgi-linear": {"base": "mgi", "encoders": "linear"},
        "mgi-shuffled-order": {"base": "mgi", "encoders": "shuffled-order"},
        "no-vit": {"base": "image-only", "vit": False},
    },
    "evaluate": {},
    "probe": {
        "labels": "resources/simulated/truth.parquet",
        "columns": ["bit", *(f"look_{index}" for index in range(6))],
    },
    "resources": {"prepare_mem_mb": 2000, "prepare_runtime_min": 30, "train_mem_mb": 4000, "train_runtime_min": 60},
}

# What is shown, commented out, of sections that the simulated cohort does not have.
EXAMPLES: dict[str, Any] = {
    "mri.folder": "resources/kaggle_3m",
    "slides.mask_values.tumour": [1],
}

HEADER = """
The simulated cohort: a small cohort in the GDC's own formats, made and served on this machine, with a planted truth.
Copy this file for a cohort of your own and run `snakemake --configfile YOURS.yaml`; a file given like that replaces
this one completely. config/README.md lists every key; an unknown key is an error.
"""

# Beside the description of a key, what holds for the simulated cohort.
COMMENTS: dict[str, str] = {
    "seed": "No setting of this file was chosen on the cohort of this seed.",
    "precision": "The README's figures are of float32.",
    "gdc.mirrors": 'For example [/data/tcga, "https://gdc-tcga-phs000178-open.s3.amazonaws.com/{file_id}/{file_name}"].',
    "expression.annotation_file_id": "Here the simulated one.",
    "split.stratify_table": "Here the planted truth.",
    "pretrain.transformer": "The paper's comparison: other encoders of the genes.",
    "pretrain.shuffled-order": "Whether genomic order matters.",
    "pretrain.shuffled-pairs": "The negative control: it retrieves at chance.",
    "pretrain.single-images": "What bags, components of the genes and texture statistics each bring.",
    "probe.labels": "Here the planted truth.",
    "finetune.mgi": "The method: pre-trained encoders, matched genes.",
    "finetune.no-pretraining": "The same from random weights.",
    "finetune.image-only": "The same without genes: what the image alone can tell a model whose ViT was pre-trained "
    "with the training patients' genes. It never sees the test patients' genes, but a control without any genes is the "
    "next one.",
    "finetune.image-only-no-pretraining": "Without genes in either stage.",
    "finetune.shuffled-genes": "The negative control: a gain that survives shuffling is not a gain from genes.",
    "finetune.mgi-transformer": "Other encoders of the genes, and Mamba over a shuffled genome.",
    "finetune.no-vit": "The convolutional path alone.",
}
