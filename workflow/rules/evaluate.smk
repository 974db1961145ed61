rule embed:
    input:
        images=image_tables,
        sources="results/{cohort}/sources.parquet",
        expression="results/{cohort}/expression.parquet",
        genes="results/{cohort}/genes.parquet",
        splits="results/{cohort}/splits.parquet",
        model="results/{cohort}/pretrain/{variant}/fold{fold}/model.safetensors",
        config="results/{cohort}/pretrain/{variant}/fold{fold}/config.json",
    output:
        embeddings="results/{cohort}/pretrain/{variant}/fold{fold}/embeddings.parquet",
    log:
        "logs/{cohort}/embed/{variant}/fold{fold}.log",
    benchmark:
        "logs/{cohort}/embed/{variant}/fold{fold}.tsv"
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=GPU,
    params:
        folder=lambda wildcards, input: Path(input.model).parent,
        device=CFG.device,
    shell:
        "python -m mgi embed {params.folder:q} --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --fold {wildcards.fold} --device {params.device} -o {output.embeddings:q} > {log} 2>&1"


rule retrieve:
    input:
        embeddings=expand(
            "results/{{cohort}}/pretrain/{variant}/fold{fold}/embeddings.parquet", variant=ENCODERS, fold=FOLDS
        ),
    output:
        report(
            "results/{cohort}/evaluate/retrieval.csv",
            caption="../report/retrieval.rst",
            category="Pre-training",
            labels={"shown": "retrieval of a patient's genes"},
        ),
    log:
        "logs/{cohort}/retrieve.log",
    benchmark:
        "logs/{cohort}/retrieve.tsv"
    conda:
        TRAINING_ENV
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    shell:
        "python -m mgi retrieve {input.embeddings:q} -o {output:q} > {log} 2>&1"


rule summarise:
    input:
        predictions=expand(
            "results/{{cohort}}/finetune/{{variant}}/fold{fold}/predictions.parquet",
            fold=FOLDS,
        ),
        sources="results/{cohort}/sources.parquet",
    output:
        summary="results/{cohort}/finetune/{variant}/summary.json",
        per_patient="results/{cohort}/finetune/{variant}/per_patient.parquet",
        per_image="results/{cohort}/finetune/{variant}/per_image.parquet",
    log:
        "logs/{cohort}/summarise/{variant}.log",
    benchmark:
        "logs/{cohort}/summarise/{variant}.tsv"
    wildcard_constraints:
        variant=one_of(CFG.finetune),
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        bootstrap_samples=CFG.evaluate.bootstrap_samples,
        seed=CFG.seed,
    shell:
        "python -m mgi summarise {input.predictions:q} --sources {input.sources:q} "
        "--bootstrap-samples {params.bootstrap_samples} --seed {params.seed} -o {output.summary:q} > {log} 2>&1"


rule compare:
    input:
        per_patient=compared("per_patient.parquet"),
        per_image=compared("per_image.parquet"),
    output:
        comparison=report(
            "results/{cohort}/evaluate/comparison.csv",
            caption="../report/comparison_table.rst",
            category="Segmentation",
            labels={"shown": "Dice and paired differences"},
        ),
        per_patient="results/{cohort}/evaluate/per_patient.parquet",
        per_image="results/{cohort}/evaluate/per_image.parquet",
    log:
        "logs/{cohort}/compare.log",
    benchmark:
        "logs/{cohort}/compare.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
    params:
        folder=lambda wildcards, output: Path(output.comparison).parent,
        variants=[f"--variant={variant}" for variant in CFG.evaluate.variants],
        reference=CFG.evaluate.reference,
        bootstrap_samples=CFG.evaluate.bootstrap_samples,
        seed=CFG.seed,
    shell:
        "python -m mgi compare results/{wildcards.cohort}/finetune {params.variants} --reference {params.reference} "
        "--bootstrap-samples {params.bootstrap_samples} --seed {params.seed} -o {params.folder:q} > {log} 2>&1"
