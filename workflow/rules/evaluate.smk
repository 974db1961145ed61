rule embed:
    input:
        checked=checked,
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        genes="<results>/{cohort}/genes.parquet",
        splits="<results>/{cohort}/splits.parquet",
        model="<results>/{cohort}/pretrain/{variant}/fold{fold}/model.safetensors",
        config="<results>/{cohort}/pretrain/{variant}/fold{fold}/config.json",
    output:
        embeddings="<results>/{cohort}/pretrain/{variant}/fold{fold}/embeddings.parquet",
    log:
        "<logs>/{cohort}/embed/{variant}/fold{fold}.log",
    benchmark:
        "<benchmarks>/{cohort}/embed/{variant}/fold{fold}.tsv"
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=min(CFG.gpus, 1),
    params:
        mgi=mgi_command,
        folder=lambda wildcards, input: Path(input.model).parent,
        device=CFG.device,
    shell:
        "{params.mgi:q} embed {params.folder:q} --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --fold {wildcards.fold:q} --device {params.device:q} -o {output.embeddings:q} > {log:q} 2>&1"


rule yardstick:
    input:
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        genes="<results>/{cohort}/genes.parquet",
        splits="<results>/{cohort}/splits.parquet",
    output:
        embeddings="<results>/{cohort}/evaluate/ridge-yardstick/fold{fold}/embeddings.parquet",
    log:
        "<logs>/{cohort}/yardstick/fold{fold}.log",
    benchmark:
        "<benchmarks>/{cohort}/yardstick/fold{fold}.tsv"
    conda:
        TRAINING_ENV
    threads: 1
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
    params:
        mgi=mgi_command,
    shell:
        "{params.mgi:q} yardstick --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --fold {wildcards.fold:q} -o {output.embeddings:q} > {log:q} 2>&1"


rule retrieve:
    input:
        embeddings=compared_embeddings,
        yardstick=expand("<results>/{{cohort}}/evaluate/ridge-yardstick/fold{fold}/embeddings.parquet", fold=PLAN.folds),
        splits="<results>/{cohort}/splits.parquet",
    output:
        report(
            "<results>/{cohort}/evaluate/retrieval.csv",
            caption="../report/retrieval.rst",
            category="Pre-training",
            labels={"shown": "retrieval of a patient's genes"},
        ),
    log:
        "<logs>/{cohort}/retrieve.log",
    benchmark:
        "<benchmarks>/{cohort}/retrieve.tsv"
    conda:
        TRAINING_ENV
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        options=options("evaluate"),
    shell:
        "{params.mgi:q} retrieve {input.embeddings:q} {input.yardstick:q} --splits {input.splits:q} --options {params.options:q} -o {output:q} > {log:q} 2>&1"


rule probe:
    input:
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        genes="<results>/{cohort}/genes.parquet",
        splits="<results>/{cohort}/splits.parquet",
        labels=given(CFG.probe.labels),
        models=expand(
            "<results>/{{cohort}}/pretrain/{variant}/fold{fold}/{file}",
            variant=CFG.embedded[0],
            fold=PLAN.folds,
            file=["model.safetensors", "config.json"],
        ),
    output:
        "<results>/{cohort}/evaluate/probe.csv",
    log:
        "<logs>/{cohort}/probe.log",
    benchmark:
        "<benchmarks>/{cohort}/probe.tsv"
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=min(CFG.gpus, 1),
    params:
        mgi=mgi_command,
        folders=lambda wildcards, input: sorted({Path(model).parent for model in input.models}),
        options=options("probe"),
        device=CFG.device,
    shell:
        "{params.mgi:q} probe {params.folders:q} --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --options {params.options:q} --device {params.device:q} -o {output:q} > {log:q} 2>&1"


rule summarise:
    input:
        predictions=expand(
            "<results>/{{cohort}}/finetune/{{variant}}/fold{fold}/predictions.parquet",
            fold=PLAN.folds,
        ),
        sources="<results>/{cohort}/sources.parquet",
    output:
        summary="<results>/{cohort}/finetune/{variant}/summary.json",
        per_patient="<results>/{cohort}/finetune/{variant}/per_patient.parquet",
        per_image="<results>/{cohort}/finetune/{variant}/per_image.parquet",
    log:
        "<logs>/{cohort}/summarise/{variant}.log",
    benchmark:
        "<benchmarks>/{cohort}/summarise/{variant}.tsv"
    wildcard_constraints:
        variant=match_exactly(CFG.finetune),
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        options=options("evaluate"),
    shell:
        "{params.mgi:q} summarise {input.predictions:q} --sources {input.sources:q} --options {params.options:q} "
        "-o {output.summary:q} > {log:q} 2>&1"


rule swap:
    input:
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        genes="<results>/{cohort}/genes.parquet",
        splits="<results>/{cohort}/splits.parquet",
        models=expand(
            "<results>/{{cohort}}/finetune/{{variant}}/fold{fold}/{file}",
            fold=PLAN.folds,
            file=["model.safetensors", "config.json"],
        ),
    output:
        "<results>/{cohort}/finetune/{variant}/swap.csv",
    log:
        "<logs>/{cohort}/swap/{variant}.log",
    benchmark:
        "<benchmarks>/{cohort}/swap/{variant}.tsv"
    wildcard_constraints:
        variant=match_exactly(name for name, chosen in CFG.finetune.items() if chosen.genes != "none"),
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=min(CFG.gpus, 1),
    params:
        mgi=mgi_command,
        folders=lambda wildcards, input: sorted({Path(model).parent for model in input.models}),
        options=options("evaluate"),
        device=CFG.device,
    shell:
        "{params.mgi:q} swap {params.folders:q} --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --options {params.options:q} --device {params.device:q} -o {output:q} > {log:q} 2>&1"


rule compare:
    input:
        per_patient=within_results(f"finetune/{name}/per_patient.parquet" for name in CFG.compared),
        per_image=within_results(f"finetune/{name}/per_image.parquet" for name in CFG.compared),
        splits="<results>/{cohort}/splits.parquet",
    output:
        projects="<results>/{cohort}/evaluate/projects.csv",
        pairs="<results>/{cohort}/evaluate/pairs.csv",
        seeds="<results>/{cohort}/evaluate/seeds.csv",
        comparison=report(
            "<results>/{cohort}/evaluate/comparison.csv",
            caption="../report/comparison_table.rst",
            category="Segmentation",
            labels={"shown": "Dice and paired differences"},
        ),
        per_patient="<results>/{cohort}/evaluate/per_patient.parquet",
        per_image="<results>/{cohort}/evaluate/per_image.parquet",
    log:
        "<logs>/{cohort}/compare.log",
    benchmark:
        "<benchmarks>/{cohort}/compare.tsv"
    conda:
        environment("base")
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        mgi=mgi_command,
        variants=lambda wildcards, output: Path(output.comparison).parents[1] / "finetune",
        folder=lambda wildcards, output: Path(output.comparison).parent,
        compared=PLAN.compared_options(),
        options=options("evaluate"),
    shell:
        "{params.mgi:q} compare {params.variants:q} {params.compared:q} --splits {input.splits:q} "
        "--options {params.options:q} -o {params.folder:q} > {log:q} 2>&1"
