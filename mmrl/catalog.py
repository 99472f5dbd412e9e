"""Table of contents: what a recipe may name, axis by axis. Strings only, so that reading it costs nothing.

An axis is a protocol of mmrl/protocols.py in snake case. Code outside this project needs no line: `use: my_pkg.my_mod:MyTerm`.
"""

CATALOG: dict[str, dict[str, str]] = {
    "task_source": {
        "maze": "data_pipelines.tasks.maze:MazeTasks",
        "clips": "data_pipelines.tasks.clips:ClipTasks",
        "jsonl": "data_pipelines.datasets.jsonl:JsonlTasks",
    },
    "task_sampler": {
        "uniform": "mmrl.samplers:UniformSampler",
        "curriculum": "mmrl.samplers:CurriculumSampler",
    },
    "rollout_engine": {
        "hf": "mmrl.engines.hf:HFEngine",
    },
    "rollout_strategy": {
        "plain": "mmrl.strategies.plain:Plain",
    },
    "reward": {
        "maze_prefix": "rewards.maze:MazePrefix",
        "maze_walker": "rewards.maze:MazeWalker",
        "maze_reaches": "rewards.maze:MazeReaches",
        "action_format": "rewards.format:ActionFormat",
        "think_format": "rewards.format:ThinkFormat",
        "answer_format": "rewards.format:AnswerFormat",
        "exact_match": "rewards.exact:ExactMatch",
        "overlong": "rewards.length:OverlongPenalty",
        "repetition": "rewards.length:RepetitionPenalty",
        "shuffled": "rewards.control:Shuffled",
        "trl": "rewards.trl:TRLFunction",
    },
    "advantage_estimator": {
        "grpo": "mmrl.advantages.grpo:GRPO",
        "rloo": "mmrl.advantages.rloo:RLOO",
        "reinforce_pp": "mmrl.advantages.reinforce_pp:ReinforcePP",
        "reinforce_pp_baseline": "mmrl.advantages.reinforce_pp:ReinforcePPBaseline",
    },
    "loss_term": {
        "clipped_surrogate": "mmrl.losses.clipped_surrogate:ClippedSurrogate",
        "gspo": "mmrl.losses.gspo:GSPO",
        "clipped_is": "mmrl.losses.cispo:ClippedISPolicy",
        "capped_is": "mmrl.losses.cispo:CappedISPolicy",
        "kl": "mmrl.losses.kl:KLToReference",
        "entropy_bonus": "mmrl.losses.entropy_bonus:EntropyBonus",
    },
    "correction": {
        "truncated_importance": "mmrl.losses.correction:TruncatedImportance",
        "masked_importance": "mmrl.losses.correction:MaskedImportance",
    },
    "schedule": {
        "constant": "mmrl.schedules:Constant",
        "linear": "mmrl.schedules:Linear",
        "cosine": "mmrl.schedules:Cosine",
        "sigmoid": "mmrl.schedules:Sigmoid",
    },
    "perturbation": {
        "patch_mask": "data_pipelines.perturb.masks:PatchMask",
        "gaussian_noise": "data_pipelines.perturb.noise:GaussianNoise",
        "diffusion_noise": "data_pipelines.perturb.noise:DiffusionNoise",
        "vogue_view": "data_pipelines.perturb.compose:VogueView",
        "blur": "data_pipelines.perturb.blur:Blur",
        "zoom_in": "data_pipelines.perturb.geometry:ZoomIn",
        "zoom_out": "data_pipelines.perturb.geometry:ZoomOut",
        "rotate": "data_pipelines.perturb.geometry:Rotate",
        "flip": "data_pipelines.perturb.geometry:Flip",
        "tilt": "data_pipelines.perturb.geometry:Tilt",
        "saturation": "data_pipelines.perturb.colour:Saturation",
        "grayscale": "data_pipelines.perturb.colour:Grayscale",
        "invert": "data_pipelines.perturb.colour:Invert",
        "channel_swap": "data_pipelines.perturb.colour:ChannelSwap",
        "jitter": "data_pipelines.perturb.colour:Jitter",
        "frame_shuffle": "data_pipelines.perturb.temporal:FrameShuffle",
        "reverse": "data_pipelines.perturb.temporal:Reverse",
        "freeze": "data_pipelines.perturb.temporal:Freeze",
        "stutter_hold": "data_pipelines.perturb.temporal:StutterHold",
        "frame_drop": "data_pipelines.perturb.temporal:FrameDrop",
        "slow": "data_pipelines.perturb.temporal:Slow",
        "fast": "data_pipelines.perturb.temporal:Fast",
        "segment": "data_pipelines.perturb.compose:Segment",
        "chain": "data_pipelines.perturb.compose:Chain",
    },
}
