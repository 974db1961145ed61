if CFG.simulate:

    rule simulate:
        input:
            checked=checked,
        output:
            # Only the receipt and the truth are named: a failed job keeps the rest.
            receipt=local(literal(f"{PLAN.simulated}/manifest.tsv")),
            truth=local(literal(f"{PLAN.simulated}/truth.parquet")),
        log:
            "<logs>/simulate.log",
        benchmark:
            "<benchmarks>/simulate.tsv"
        conda:
            environment("base")
        threads: 2
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folder=lambda wildcards, output: Path(output.receipt).parent,
            options=options("simulate"),
        shell:
            "{params.mgi:q} simulate {params.folder:q} --options {params.options:q} --workers {threads:q} > {log:q} 2>&1"


if CFG.gdc:

    checkpoint query:
        input:
            simulated=given(PLAN.simulated and f"{PLAN.simulated}/manifest.tsv"),
            exclude=given(CFG.gdc.exclude),
        output:
            manifest=MANIFEST,
        log:
            "<logs>/gdc/{project}/query.log",
        benchmark:
            "<benchmarks>/gdc/{project}/query.tsv"
        wildcard_constraints:
            project=match_exactly(name for name in PLAN.projects if name not in PLAN.pinned),
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            options=options("query", "project"),
        shell:
            "{params.mgi:q} gdc query --options {params.options:q} -o {output.manifest:q} > {log:q} 2>&1"

    rule pin:
        input:
            expand(MANIFEST, project=PLAN.projects),

    rule fetch_annotation:
        input:
            checked=checked,
            manifest=manifest,
        output:
            receipt="<resources>/gdc/{project}/receipts/annotation.tsv",
        log:
            "<logs>/gdc/{project}/fetch_annotation.log",
        benchmark:
            "<benchmarks>/gdc/{project}/fetch_annotation.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folder=lambda wildcards, input: Path(input.manifest).parent / "annotation",
            source=fetch_options,
        shell:
            "{params.mgi:q} gdc fetch {input.manifest:q} -o {params.folder:q} --data-type annotation "
            "--options {params.source:q} --receipt {output.receipt:q} > {log:q} 2>&1"

    rule fetch_expression:
        input:
            checked=checked,
            manifest=manifest,
        output:
            receipt="<resources>/gdc/{project}/receipts/expression/{part}.tsv",
        log:
            "<logs>/gdc/{project}/fetch_expression/{part}.log",
        benchmark:
            "<benchmarks>/gdc/{project}/fetch_expression/{part}.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folder=lambda wildcards, input: Path(input.manifest).parent / "expression",
            rows=lambda wildcards: PLAN.rows_of_part(int(wildcards.part)),
            source=fetch_options,
        shell:
            "{params.mgi:q} gdc fetch {input.manifest:q} -o {params.folder:q} --data-type expression "
            "--rows {params.rows:q} --options {params.source:q} --receipt {output.receipt:q} > {log:q} 2>&1"


if CFG.fetches_slides and CFG.slides.fetch_from == "gdc":

    rule fetch_slides:
        input:
            checked=checked,
            manifest=unchanged_manifest,
        output:
            # Slides grow elsewhere: a failed job loses its folder, but not what it has fetched.
            slides=kept_or_temporary("<resources>/gdc/{project}/slides/{source}"),
            receipt="<resources>/gdc/{project}/receipts/slides/{source}.tsv",
        log:
            "<logs>/gdc/{project}/fetch_slides/{source}.log",
        benchmark:
            "<benchmarks>/gdc/{project}/fetch_slides/{source}.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
            slides_in_flight=1,
        params:
            mgi=mgi_command,
            partial=lambda wildcards, input: Path(input.manifest).parent / "partial",
            files=lambda wildcards: [f"--file-id={file_id}" for file_id in batch(wildcards).rows.file_id],
            md5=lambda wildcards: list(batch(wildcards).rows.md5),
            source=fetch_options,
        shell:
            "{params.mgi:q} gdc fetch {input.manifest:q} -o {output.slides:q} {params.files:q} "
            "--partial {params.partial:q} --options {params.source:q} --receipt {output.receipt:q} > {log:q} 2>&1"


if CFG.fetches_slides and CFG.slides.fetch_from == "idc":

    rule fetch_slides_idc:
        input:
            checked=checked,
            manifest=unchanged_manifest,
        output:
            slides=kept_or_temporary("<resources>/gdc/{project}/slides/{source}"),
            receipt="<resources>/gdc/{project}/receipts/slides/{source}.tsv",
        log:
            "<logs>/gdc/{project}/fetch_slides/{source}.log",
        benchmark:
            "<benchmarks>/gdc/{project}/fetch_slides/{source}.tsv"
        conda:
            environment("idc")
        threads: 1
        resources:
            # The library keeps its whole index in memory, 1.7 GB.
            mem_mb=max(CFG.resources.prepare_mem_mb, 3000),
            runtime=CFG.resources.prepare_runtime_min,
            slides_in_flight=1,
        params:
            mgi=mgi_command,
            partial=lambda wildcards, input: Path(input.manifest).parent / "partial",
            files=lambda wildcards: [f"--file-id={file_id}" for file_id in batch(wildcards).rows.file_id],
        shell:
            "{params.mgi:q} idc fetch {input.manifest:q} -o {output.slides:q} {params.files:q} "
            "--partial {params.partial:q} --receipt {output.receipt:q} > {log:q} 2>&1"
