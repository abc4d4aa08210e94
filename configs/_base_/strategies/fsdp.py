# Weights, gradients and optimiser state dealt out over all GPUs, for a model that outgrows one: put
# this file behind the others in _base_. The parts of over a million parameters are dealt out one by
# one. Checkpoints hold the full state, so that tools/test.py and --resume read them as ever.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy',
            min_num_params=1000000)),
    state_dict_cfg='full')
