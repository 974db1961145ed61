if CFG.expression.table is None:

    rule build_expression:
        input:
            manifests=manifests,
            expression=expression_receipts,
            annotation=CFG.expression.positions or f"resources/gdc/{PROJECTS[0]}/receipts/annotation.tsv",
            genes=CFG.expression.genes or [],
        output:
            expression="results/{cohort}/expression.parquet",
            genes="results/{cohort}/genes.parquet",
        log:
            "logs/{cohort}/expression.log",
        benchmark:
            "logs/{cohort}/expression.tsv"
        conda:
            "../envs/prepare.yaml"
        threads: 2
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            folders=lambda wildcards, input: [Path(path).parent / "expression" for path in input.manifests],
            manifests=lambda wildcards, input: expand("--manifest={path}", path=input.manifests),
            annotation=annotation_file,
            kept=kept_genes(),
            unit=CFG.expression.unit,
        shell:
            "python -m mgi expression build {params.folders:q} {params.manifests:q} "
            "--annotation {params.annotation:q} {params.kept:q} --unit {params.unit} --workers {threads} "
            "-o {output.expression:q} > {log} 2>&1"

else:

    rule import_expression:
        input:
            table=CFG.expression.table,
            positions=CFG.expression.positions,
        output:
            expression="results/{cohort}/expression.parquet",
            genes="results/{cohort}/genes.parquet",
        log:
            "logs/{cohort}/expression.log",
        benchmark:
            "logs/{cohort}/expression.tsv"
        conda:
            "../envs/prepare.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        shell:
            "python -m mgi expression import {input.table:q} --positions {input.positions:q} "
            "-o {output.expression:q} > {log} 2>&1"


if CFG.slides:

    rule tile_slides:
        input:
            slides=slide_folder,
            annotations=annotation_files,
        output:
            images="results/{cohort}/images/{source}.parquet",
            status="results/{cohort}/images/{source}.status.parquet",
        log:
            "logs/{cohort}/tile_slides/{source}.log",
        benchmark:
            "logs/{cohort}/tile_slides/{source}.tsv"
        # Before another fetch, so that no more slides lie about than jobs run.
        priority: 1
        conda:
            "../envs/prepare.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            slides_in_flight=1,
        params:
            slides=slide_files,
            cases=lambda wildcards: [f"--case-id={case_id}" for case_id in batch(wildcards)[1].case_id],
            mpp=CFG.slides.mpp,
            tile_px=CFG.slides.tile_px,
            min_tissue=CFG.slides.min_tissue,
            default_mpp=f"--default-mpp {CFG.slides.default_mpp}" if CFG.slides.default_mpp else "",
            annotations=f"--annotations {shlex.quote(CFG.slides.annotations)}" if CFG.slides.annotations else "",
        shell:
            "python -m mgi slide tile {params.slides:q} {params.cases:q} --mpp {params.mpp} "
            "--tile-px {params.tile_px} --min-tissue {params.min_tissue} {params.default_mpp} {params.annotations} "
            "--status {output.status:q} -o {output.images:q} > {log} 2>&1"

    rule collect_sources:
        input:
            manifests=manifests,
            images=image_tables,
            status=status_tables,
        output:
            sources="results/{cohort}/sources.parquet",
        log:
            "logs/{cohort}/sources.log",
        benchmark:
            "logs/{cohort}/sources.tsv"
        conda:
            "../envs/prepare.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            manifests=lambda wildcards, input: expand("--manifest={path}", path=input.manifests),
            per_job=CFG.slides.per_job,
            annotations=f"--annotations {shlex.quote(CFG.slides.annotations)}" if CFG.slides.annotations else "",
        shell:
            "python -m mgi sources results/{wildcards.cohort}/images {params.manifests:q} "
            "--per-job {params.per_job} {params.annotations} -o {output.sources:q} > {log} 2>&1"

else:

    rule import_mri:
        input:
            # Its time changes with what lies beside the series and not with a corrected mask: `state` tells.
            folder=ancient(CFG.mri.folder),
        output:
            images="results/{cohort}/images/mri.parquet",
            sources="results/{cohort}/sources.parquet",
        log:
            "logs/{cohort}/import_mri.log",
        benchmark:
            "logs/{cohort}/import_mri.tsv"
        conda:
            "../envs/prepare.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            image_px=CFG.mri.image_px,
            state=refused(fingerprint)(CFG.mri.folder),
        shell:
            "python -m mgi mri import {input.folder:q} --image-px {params.image_px} "
            "--sources {output.sources:q} -o {output.images:q} > {log} 2>&1"


rule split:
    input:
        manifests=manifests,
        sources="results/{cohort}/sources.parquet",
        expression="results/{cohort}/expression.parquet",
        stratify_table=CFG.split.stratify_table or [],
    output:
        splits="results/{cohort}/splits.parquet",
        flow="results/{cohort}/cohort_flow.csv",
    log:
        "logs/{cohort}/split.log",
    benchmark:
        "logs/{cohort}/split.tsv"
    conda:
        "../envs/prepare.yaml"
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        manifests=lambda wildcards, input: expand("--manifest={path}", path=input.manifests),
        stratify=stratification(),
        folds=CFG.split.folds,
        val_fraction=CFG.split.val_fraction,
        by=CFG.split.by,
        seed=CFG.seed,
    shell:
        "python -m mgi split --sources {input.sources:q} --expression {input.expression:q} {params.manifests:q} "
        "--folds {params.folds} --val-fraction {params.val_fraction} --by {params.by} {params.stratify} "
        "--seed {params.seed} --flow {output.flow:q} -o {output.splits:q} > {log} 2>&1"
