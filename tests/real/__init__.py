"""A real pretrained model, SmolLM2-135M-Instruct, through every stage that reads a model. `make real` runs it."""
