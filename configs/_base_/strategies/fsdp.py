# Weights, gradients and optimiser state dealt out over all GPUs, for a model that outgrows one: put
# this file behind the others in _base_. The layers of these classes are dealt out one by one, and
# put together one at a time; a backbone of your own adds its class. Checkpoints hold the full state,
# so that tools/test.py and --resume read them as ever.
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
