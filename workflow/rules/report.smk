rule draw_flow:
    input:
        "<results>/{cohort}/cohort_flow.csv",
    output:
        report(
            "<results>/{cohort}/report/flow.png",
            caption="../report/flow.rst",
            category="Cohort",
            labels={"shown": "cases kept at each step"},
        ),
    log:
        "<logs>/{cohort}/report/flow.log",
    benchmark:
        "<benchmarks>/{cohort}/report/flow.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
    shell:
        "{params.mgi:q} report flow {input:q} -o {output:q} > {log:q} 2>&1"


rule draw_losses:
    input:
        within_results(f"{run}/metrics.csv" for run in PLAN.runs()),
    output:
        report(
            "<results>/{cohort}/report/losses.png",
            caption="../report/losses.rst",
            category="Training",
            labels={"shown": "loss and validation curves"},
        ),
    log:
        "<logs>/{cohort}/report/losses.log",
    benchmark:
        "<benchmarks>/{cohort}/report/losses.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
    shell:
        "{params.mgi:q} report losses {input:q} -o {output:q} > {log:q} 2>&1"


rule draw_comparison:
    input:
        comparison="<results>/{cohort}/evaluate/comparison.csv",
        per_patient="<results>/{cohort}/evaluate/per_patient.parquet",
    output:
        report(
            "<results>/{cohort}/report/comparison.png",
            caption="../report/comparison.rst",
            category="Segmentation",
            labels={"shown": "Dice by patient"},
        ),
    log:
        "<logs>/{cohort}/report/comparison.log",
    benchmark:
        "<benchmarks>/{cohort}/report/comparison.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        folder=lambda wildcards, input: Path(input.comparison).parent,
    shell:
        "{params.mgi:q} report comparison {params.folder:q} -o {output:q} > {log:q} 2>&1"


rule draw_overlays:
    input:
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        per_patient=f"<results>/{{cohort}}/finetune/{CFG.evaluate.reference}/per_patient.parquet",
        predictions=expand(
            "<results>/{{cohort}}/finetune/{variant}/fold{fold}/predictions.parquet",
            variant=CFG.evaluate.reference,
            fold=PLAN.folds,
        ),
    output:
        report(
            "<results>/{cohort}/report/overlays.png",
            caption="../report/overlays.rst",
            category="Segmentation",
            labels={"shown": "best, median and worst patient"},
        ),
    log:
        "<logs>/{cohort}/report/overlays.log",
    benchmark:
        "<benchmarks>/{cohort}/report/overlays.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        folder=lambda wildcards, input: Path(input.per_patient).parent,
    shell:
        "{params.mgi:q} report overlays {params.folder:q} --sources {input.sources:q} -o {output:q} > {log:q} 2>&1"


rule draw_map:
    input:
        embeddings=reference_embeddings,
        labels=lambda wildcards: (
            local(PLAN.map_label()[0]) if PLAN.map_label()[0] else within_results(["splits.parquet"])
        ),
    output:
        report(
            "<results>/{cohort}/report/map.png",
            caption="../report/map.rst",
            category="Pre-training",
            labels={"shown": "map of images and genes"},
        ),
    log:
        "<logs>/{cohort}/report/map.log",
    benchmark:
        "<benchmarks>/{cohort}/report/map.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        column=PLAN.map_label()[1],
    shell:
        "{params.mgi:q} report map {input.embeddings:q} --labels {input.labels:q} --column {params.column:q} "
        "-o {output:q} > {log:q} 2>&1"


if PLAN.draws_previews:

    rule draw_slides:
        input:
            sources="<results>/{cohort}/sources.parquet",
            previews=preview_folders,
        output:
            report(
                "<results>/{cohort}/report/slides.png",
                caption="../report/slides.rst",
                category="Cohort",
                labels={"shown": "slides, tissue, tumour and tiles"},
            ),
        log:
            "<logs>/{cohort}/report/slides.log",
        benchmark:
            "<benchmarks>/{cohort}/report/slides.tsv"
        conda:
            environment("base")
        threads: 1
        resources:
            mem_mb=CFG.resources.prepare_mem_mb,
            runtime=CFG.resources.prepare_runtime_min,
        params:
            mgi=mgi_command,
            folder=lambda wildcards, input: Path(input.sources).parent / "previews",
        shell:
            "{params.mgi:q} report slides {input.sources:q} --previews {params.folder:q} -o {output:q} > {log:q} 2>&1"


rule write_page:
    input:
        within_results(PLAN.page_inputs()),
    output:
        "<results>/{cohort}/report/index.html",
    log:
        "<logs>/{cohort}/report/page.log",
    benchmark:
        "<benchmarks>/{cohort}/report/page.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        folder=lambda wildcards, output: Path(output[0]).parents[1],
    shell:
        "{params.mgi:q} report page {params.folder:q} -o {output:q} > {log:q} 2>&1"
