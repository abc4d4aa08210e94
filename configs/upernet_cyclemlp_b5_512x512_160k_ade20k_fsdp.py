# The same training with sharded weights; it shows how to shard any config (GPUs only).
_base_ = ['upernet_cyclemlp_b5_512x512_160k_ade20k.py', '_base_/strategies/fsdp.py']
