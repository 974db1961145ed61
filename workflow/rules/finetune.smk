rule finetune:
    input:
        images=image_tables,
        sources="results/{cohort}/sources.parquet",
        expression=profiles,
        splits="results/{cohort}/splits.parquet",
        pretrained=encoders("fold{fold}"),
    output:
        model="results/{cohort}/finetune/{variant}/fold{fold}/model.safetensors",
        config="results/{cohort}/finetune/{variant}/fold{fold}/config.json",
        metrics="results/{cohort}/finetune/{variant}/fold{fold}/metrics.csv",
        predictions="results/{cohort}/finetune/{variant}/fold{fold}/predictions.parquet",
    log:
        "logs/{cohort}/finetune/{variant}/fold{fold}.log",
    benchmark:
        "logs/{cohort}/finetune/{variant}/fold{fold}.tsv"
    wildcard_constraints:
        variant=one_of(CFG.finetune),
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=GPU,
    params:
        folder=lambda wildcards, output: Path(output.model).parent,
        fold=lambda wildcards: wildcards.fold,
        options=options("finetune"),
        expression=lambda wildcards, input: [f"--expression={path}" for path in input.expression[:1]],
        pretrained=lambda wildcards, input: [f"--pretrained={Path(path).parent}" for path in input.pretrained[:1]],
    shell:
        "python -m mgi finetune --sources {input.sources:q} --splits {input.splits:q} {params.expression:q} "
        "{params.pretrained:q} --fold {params.fold} --options {params.options:q} -o {params.folder:q} > {log} 2>&1"


use rule finetune as finetune_all with:
    input:
        images=image_tables,
        sources="results/{cohort}/sources.parquet",
        expression=profiles,
        splits="results/{cohort}/splits.parquet",
        pretrained=encoders("all"),
    output:
        model="results/{cohort}/finetune/{variant}/all/model.safetensors",
        config="results/{cohort}/finetune/{variant}/all/config.json",
        metrics="results/{cohort}/finetune/{variant}/all/metrics.csv",
    log:
        "logs/{cohort}/finetune/{variant}/all.log",
    benchmark:
        "logs/{cohort}/finetune/{variant}/all.tsv"
    params:
        folder=lambda wildcards, output: Path(output.model).parent,
        fold="all",
        options=options("finetune"),
        expression=lambda wildcards, input: [f"--expression={path}" for path in input.expression[:1]],
        pretrained=lambda wildcards, input: [f"--pretrained={Path(path).parent}" for path in input.pretrained[:1]],
