"""The glyph world: `environment` is the world, `train` makes the model (from `batches`, by the losses in `flowmap`),
`rollout` plays it in the plainest way, `evaluate` scores it, `sheet` draws it, `weights.safetensors` is the model."""
