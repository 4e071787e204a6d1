"""Hugging Face folders as the mmsegmentation checkpoints that compute the same: keys, configuration, test path.

``config.json``, ``model.safetensors`` (or ``pytorch_model.bin``) and ``preprocessor_config.json``, as transformers 4
and 5 write them. A file for each family. Imports nothing else of export but its errors.
"""
