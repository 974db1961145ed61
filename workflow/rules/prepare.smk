if CFG.expression.table is None:

    rule build_expression:
        input:
            manifests=manifests,
            expression=expression_receipts,
            annotation=annotation_receipt,
            genes=given(CFG.expression.genes),
        output:
            expression="<results>/{cohort}/expression.parquet",
            genes="<results>/{cohort}/genes.parquet",
        log:
            "<logs>/{cohort}/expression.log",
        benchmark:
            "<benchmarks>/{cohort}/expression.tsv"
        conda:
            environment("base")
        threads: 2
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folders=lambda wildcards, input: [Path(path).parent / "expression" for path in input.manifests],
            manifests=lambda wildcards, input: [f"--manifest={path}" for path in input.manifests],
            annotation=gene_annotation,
            options=options("expression"),
        shell:
            "{params.mgi:q} expression build {params.folders:q} {params.manifests:q} "
            "--annotation {params.annotation:q} --options {params.options:q} --workers {threads:q} "
            "-o {output.expression:q} > {log:q} 2>&1"

else:

    rule import_expression:
        input:
            table=given(CFG.expression.table),
            positions=given(CFG.expression.positions),
        output:
            expression="<results>/{cohort}/expression.parquet",
            genes="<results>/{cohort}/genes.parquet",
        log:
            "<logs>/{cohort}/expression.log",
        benchmark:
            "<benchmarks>/{cohort}/expression.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            positions=lambda wildcards, input: [f"--positions={input.positions}"] if input.positions else [],
            options=options("import"),
        shell:
            "{params.mgi:q} expression import {input.table:q} {params.positions:q} --options {params.options:q} "
            "-o {output.expression:q} > {log:q} 2>&1"


if CFG.slides:

    rule tile_slides:
        input:
            slides=slides,
            annotations=annotation_files,
        output:
            images="<results>/{cohort}/images/{source}.parquet",
            status="<results>/{cohort}/images/{source}.status.parquet",
            previews=preview_folder("<results>/{cohort}/previews/{source}"),
            coordinates=coordinates_folder("<results>/{cohort}/coordinates/{source}"),
        log:
            "<logs>/{cohort}/tile_slides/{source}.log",
        benchmark:
            "<benchmarks>/{cohort}/tile_slides/{source}.tsv"
        # Before another fetch, so that there are never more slides on the disk than jobs.
        priority: 1
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            slides_in_flight=int(CFG.fetches_slides),
        params:
            mgi=mgi_command,
            slides=slide_files,
            names=slide_names,
            options=tile_options,
            beside=lambda wildcards, output: [
                f"--{name}={getattr(output, name)}" for name in ("previews", "coordinates") if getattr(output, name)
            ],
        shell:
            "{params.mgi:q} slide tile {params.slides:q} {params.names:q} --options {params.options:q} "
            "{params.beside:q} --status {output.status:q} -o {output.images:q} > {log:q} 2>&1"

    rule collect_sources:
        input:
            manifests=slide_manifests,
            images=image_tables,
            status=status_tables,
        output:
            sources="<results>/{cohort}/sources.parquet",
        log:
            "<logs>/{cohort}/sources.log",
        benchmark:
            "<benchmarks>/{cohort}/sources.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folder=lambda wildcards, output: Path(output.sources).parent / "images",
            manifests=lambda wildcards, input: [f"--manifest={path}" for path in input.manifests],
            collected=lambda wildcards: PLAN.source_options(),
        shell:
            "{params.mgi:q} sources {params.folder:q} {params.manifests:q} {params.collected:q} "
            "-o {output.sources:q} > {log:q} 2>&1"

elif CFG.features:

    rule import_features:
        input:
            # The folder's time changes with a file beside those of features: `state` tells whether one of them did.
            files=lambda wildcards: ancient(local(CFG.features.own)),
        output:
            images="<results>/{cohort}/images/features.parquet",
            sources="<results>/{cohort}/sources.parquet",
        log:
            "<logs>/{cohort}/import_features.log",
        benchmark:
            "<benchmarks>/{cohort}/import_features.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            pattern=[f"--case-pattern={CFG.features.case_pattern}"] if CFG.features.case_pattern else [],
            state=lambda wildcards: PLAN.features_state,
        shell:
            "{params.mgi:q} features import {input.files:q} {params.pattern:q} "
            "--sources {output.sources:q} -o {output.images:q} > {log:q} 2>&1"

else:

    rule import_mri:
        input:
            # The folder's time changes with a file beside the series and not with a corrected mask: `state` does.
            folder=lambda wildcards: ancient(local(CFG.mri.folder)),
        output:
            images="<results>/{cohort}/images/mri.parquet",
            sources="<results>/{cohort}/sources.parquet",
        log:
            "<logs>/{cohort}/import_mri.log",
        benchmark:
            "<benchmarks>/{cohort}/import_mri.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            options=options("mri"),
            state=lambda wildcards: PLAN.mri_state,
        shell:
            "{params.mgi:q} mri import {input.folder:q} --options {params.options:q} "
            "--sources {output.sources:q} -o {output.images:q} > {log:q} 2>&1"


rule split:
    input:
        manifests=manifests,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        stratify_table=given(CFG.split.stratify_table),
        site_table=given(CFG.split.site_table),
    output:
        splits="<results>/{cohort}/splits.parquet",
        flow="<results>/{cohort}/cohort_flow.csv",
    log:
        "<logs>/{cohort}/split.log",
    benchmark:
        "<benchmarks>/{cohort}/split.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        manifests=lambda wildcards, input: [f"--manifest={path}" for path in input.manifests],
        options=options("split"),
    shell:
        "{params.mgi:q} split --sources {input.sources:q} --expression {input.expression:q} {params.manifests:q} "
        "--options {params.options:q} --flow {output.flow:q} -o {output.splits:q} > {log:q} 2>&1"
