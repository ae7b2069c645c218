"""Flags of the published code and its launchers that have no effect any more."""

# name -> what replaces it
RETIRED = {
    "multiprocessing_distributed": "torchrun starts the processes",
    "dist_backend": "NCCL is used on GPUs, gloo on CPUs",
    "gpu": "each process takes its own GPU",
    "start_epoch": "a resumed run knows its epoch",
    "mode": "it never had one",
    "sched": "it never had one",
    "reduce_mean": "it never had one",
    "pin_mem": "memory is pinned where there is a GPU",
    "no_pin_mem": "memory is pinned where there is a GPU",
    "num_labels": "the classes are counted",
    "label": "the data folder decides, or --labels_perc",
    "patch_size": "it is part of a transformer's name",
    "use_env": "torchrun and Slurm say who each process is",
    "local_rank": "the launcher's LOCAL_RANK is used",
    "world_size": "the launcher says how many processes there are",
    "rank": "the launcher says which process this is",
    "use_pil_blur": "the blur is Pillow's",
    "prefix": "the layout of a file is inferred from its keys",
    "improve_numerical_stability": "Sinkhorn is safe at any epsilon",
}
# Those that never took a value: a word after them is something else.
RETIRED_SWITCHES = {
    "multiprocessing_distributed",
    "use_env",
    "pin_mem",
    "no_pin_mem",
    "stop_grad_conv1",
    "resume_ckpt",
    "eval_head",
}
