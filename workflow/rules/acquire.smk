if CFG.simulate:

    rule simulate:
        output:
            # Only the receipt and the truth are named: a failed job keeps the rest.
            receipt=f"{SIMULATED}/manifest.tsv",
            truth=f"{SIMULATED}/truth.parquet",
        log:
            "logs/simulate.log",
        benchmark:
            "logs/simulate.tsv"
        conda:
            "../envs/acquire.yaml"
        threads: 2
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            folder=lambda wildcards, output: Path(output.receipt).parent,
            cases=CFG.simulate.cases,
            genes=CFG.simulate.genes,
            slide_px=CFG.simulate.slide_px,
            seed=CFG.seed,
        shell:
            "python -m mgi simulate {params.folder:q} --cases {params.cases} --genes {params.genes} "
            "--slide-px {params.slide_px} --seed {params.seed} --workers {threads} > {log} 2>&1"


if CFG.gdc:

    checkpoint query:
        input:
            [f"{SIMULATED}/manifest.tsv"] if CFG.simulate else [],
            exclude=CFG.gdc.exclude or [],
        output:
            manifest=MANIFEST,
        log:
            "logs/gdc/{project}/query.log",
        benchmark:
            "logs/gdc/{project}/query.tsv"
        wildcard_constraints:
            project=one_of([name for name in PROJECTS if name not in PINNED]),
        conda:
            "../envs/acquire.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            api_url=CFG.gdc.api_url,
            wanted=queried(),
        shell:
            "python -m mgi gdc query --project {wildcards.project} --api-url {params.api_url:q} {params.wanted} "
            "-o {output.manifest:q} > {log} 2>&1"

    rule pin:
        input:
            expand(MANIFEST, project=PROJECTS),

    rule fetch_annotation:
        input:
            manifest=manifest,
        output:
            receipt="resources/gdc/{project}/receipts/annotation.tsv",
        log:
            "logs/gdc/{project}/fetch_annotation.log",
        benchmark:
            "logs/gdc/{project}/fetch_annotation.tsv"
        conda:
            "../envs/acquire.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            source=source_options,
        params:
            folder=lambda wildcards, input: Path(input.manifest).parent / "annotation",
        shell:
            "python -m mgi gdc fetch {input.manifest:q} -o {params.folder:q} --data-type annotation "
            "{resources.source} --receipt {output.receipt:q} > {log} 2>&1"

    rule fetch_expression:
        input:
            manifest=manifest,
        output:
            receipt="resources/gdc/{project}/receipts/expression/{part}.tsv",
        log:
            "logs/gdc/{project}/fetch_expression/{part}.log",
        benchmark:
            "logs/gdc/{project}/fetch_expression/{part}.tsv"
        conda:
            "../envs/acquire.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            source=source_options,
        params:
            folder=lambda wildcards, input: Path(input.manifest).parent / "expression",
            rows=rows_of_part,
        shell:
            "python -m mgi gdc fetch {input.manifest:q} -o {params.folder:q} --data-type expression "
            "--rows {params.rows} {resources.source} --receipt {output.receipt:q} > {log} 2>&1"


if CFG.slides and CFG.slides.fetch_from == "gdc":

    rule fetch_slides:
        input:
            # A slide is fetched again when its own row of the manifest changed, not when any row did.
            manifest=lambda wildcards: ancient(manifest(wildcards)),
        output:
            # Slides grow elsewhere: a failed job loses its folder, but not what it has fetched.
            slides=kept_or_temporary("resources/gdc/{project}/slides/{source}"),
            receipt="resources/gdc/{project}/receipts/slides/{source}.tsv",
        log:
            "logs/gdc/{project}/fetch_slides/{source}.log",
        benchmark:
            "logs/gdc/{project}/fetch_slides/{source}.tsv"
        conda:
            "../envs/acquire.yaml"
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            source=source_options,
            slides_in_flight=1,
        params:
            partial=lambda wildcards, input: Path(input.manifest).parent / "partial",
            files=lambda wildcards: [f"--file-id={file_id}" for file_id in batch(wildcards)[1].file_id],
            md5=lambda wildcards: list(batch(wildcards)[1].md5),
        shell:
            "python -m mgi gdc fetch {input.manifest:q} -o {output.slides:q} {params.files} "
            "--partial {params.partial:q} {resources.source} --receipt {output.receipt:q} > {log} 2>&1"


if CFG.slides and CFG.slides.fetch_from == "idc":

    rule fetch_slides_idc:
        input:
            manifest=lambda wildcards: ancient(manifest(wildcards)),
        output:
            slides=kept_or_temporary("resources/gdc/{project}/slides/{source}"),
            receipt="resources/gdc/{project}/receipts/slides/{source}.tsv",
        log:
            "logs/gdc/{project}/fetch_slides/{source}.log",
        benchmark:
            "logs/gdc/{project}/fetch_slides/{source}.tsv"
        conda:
            "../envs/idc.yaml"
        threads: 1
        resources:
            # The library holds its whole index in memory, 1.7 GB.
            mem_mb=max(CFG.resources.prepare_mem_mb, 3000),
            runtime=CFG.resources.prepare_runtime_min,
            slides_in_flight=1,
        params:
            partial=lambda wildcards, input: Path(input.manifest).parent / "partial",
            files=lambda wildcards: [f"--file-id={file_id}" for file_id in batch(wildcards)[1].file_id],
        shell:
            "python -m mgi idc fetch {input.manifest:q} -o {output.slides:q} {params.files} "
            "--partial {params.partial:q} --receipt {output.receipt:q} > {log} 2>&1"
