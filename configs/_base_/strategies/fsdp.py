# Weights, gradients and optimiser state sharded over all GPUs, for a model that is too large for one:
# name this file last in _base_. The layers of these classes are sharded and gathered one at a time;
# for a backbone of your own, add its class. Checkpoints hold the full state, which tools/test.py and
# --resume read.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='ShardedStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy=dict(
            type='shard_layers', layers=['CycleBlock', 'EncoderLayer', 'RepMLPNetUnit']
        ),
    ),
)
