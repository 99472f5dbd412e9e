"""Table of contents: what a recipe may name, axis by axis. Strings only, so that reading it costs nothing.

An axis is a protocol of mmrl/protocols.py in snake case. Code outside this project needs no line: `use: my_pkg.my_mod:MyTerm`.
"""

CATALOG: dict[str, dict[str, str]] = {
    "task_source": {
        "maze": "data_pipelines.tasks.maze:MazeTasks",
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
        "temporal_iou": "rewards.spans:TemporalIoU",
        "videossr": "rewards.videossr:VideoSSR",
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
    },
    "frame_sampler": {
        "qwen": "data_pipelines.video.sampling:QwenFrames",
        "uniform": "data_pipelines.video.sampling:UniformFrames",
        "stride": "data_pipelines.video.sampling:StrideFrames",
        "segment": "data_pipelines.video.sampling:SegmentFrames",
        "videossr": "data_pipelines.video.sampling:VideoSSRFrames",
    },
    "perturbation": {},
}
