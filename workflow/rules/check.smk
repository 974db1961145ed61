"""Check the models and the device before anything is fetched or trained."""

import importlib.util
import subprocess


def check_single_targets():
    """Check before single targets are trained in this environment; for the default target a job does it."""
    trained = {job.rule.name for job in workflow.dag.needrun_jobs()} & {"pretrain", "finetune", "finetune_all"}
    receipt = placed_path(CHECKED)
    elsewhere = DEPLOYED or not workflow.local_exec or importlib.util.find_spec("torch") is None
    if not trained or elsewhere or receipt.exists() or not workflow.is_main_process or workflow.dag.checkpoint_jobs:
        return
    command = [*mgi_command({}, 1), "check", PLAN.check_options(), "--receipt", receipt]
    checked = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if checked.returncode:
        raise WorkflowError(checked.stderr.strip())


onstart:
    check_single_targets()


# A checkpoint and no input: a receipt among the inputs would be a reason to fetch and train everything again.
checkpoint check:
    output:
        CHECKED,
    log:
        "<logs>/check.log",
    benchmark:
        "<benchmarks>/check.tsv"
    conda:
        TRAINING_ENV
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
        gpu=min(CFG.gpus, 1),
    params:
        mgi=mgi_command,
        options=lambda wildcards: PLAN.check_options(),
    shell:
        "{params.mgi:q} check {params.options:q} --receipt {output:q} > {log:q} 2>&1"
