"""Training: one step encoding, one DeepSpeed loop; pre-training, SFT and reward models are thin on top."""
